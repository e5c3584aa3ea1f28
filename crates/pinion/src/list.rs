//! `pinion models`.

use std::path::PathBuf;

use clap::Args;

use crate::deployment::Deployment;
use crate::failure::Failure;
use crate::out::print_line;

#[derive(Args)]
pub struct Words {
    /// What is served, in place of the built-in cog.yaml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let deployment = Deployment::load(words.config.as_deref())?;
    for offer in &deployment.offers {
        let served = &offer.served;
        print_line!("{}  ({}, version {})", served.name, served.model, offer.version()?);
        for name in &served.names {
            print_line!("  as {name}");
        }
        for (id, name) in &served.versions {
            print_line!("  as {name}:{id}");
        }
        if !served.description.is_empty() {
            print_line!("  {}", served.description);
        }
    }
    Ok(())
}
