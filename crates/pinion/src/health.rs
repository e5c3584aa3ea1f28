//! `pinion health`: whether a server of this program takes predictions, as an exit code: for the health checks of containers,
//! whose images have no other client of HTTP. Asks the route that every server here has; refuses to know which one it is.

use clap::Args;
use serde_json::Value;

use crate::failure::Failure;
use crate::{out, ps};

#[derive(Args)]
pub struct Words {
    /// The server's address; left out: this machine, on --port
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    #[arg(long, env = "PORT", default_value_t = 5000)]
    port: u16,
    /// Fail only where nothing but a restart helps: nobody answers, or the model was given up
    #[arg(long)]
    live: bool,
}

/// Of `pinion serve` and of `pinion cog`, without a token.
const PATH: &str = "/readyz";
/// States of a container's model that it does not leave by itself.
const GIVEN_UP: [&str; 2] = ["SETUP_FAILED", "DEFUNCT"];

pub fn main(words: Words) -> Result<(), Failure> {
    let server = words.server.unwrap_or_else(|| format!("http://127.0.0.1:{}", words.port));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let (status, body) = runtime.block_on(async { ps::get(&ps::way()?, &server, PATH, &[]).await })?;
    let said = String::from_utf8_lossy(&body).trim().to_owned();
    let answer: Value = serde_json::from_str(&said).unwrap_or_default();
    let given_up = answer["status"].as_str().is_some_and(|state| GIVEN_UP.contains(&state));
    if status == 200 || (words.live && !given_up) {
        return out::line(said);
    }
    Err(Failure::Failed(format!("--server {server}: {PATH} has status {status}: {said}")))
}
