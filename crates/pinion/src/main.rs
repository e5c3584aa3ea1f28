//! The program. Words in, exit code out; each word's work is in the file of its name.

mod bench;
mod check;
mod child;
mod cog;
mod deployment;
mod devices;
mod doctor;
mod echo;
mod failure;
mod fetch;
mod filing;
mod golden;
mod health;
mod init;
mod inputs;
mod labels;
mod launch;
mod list;
mod made;
mod out;
mod paths;
mod places;
mod probe;
mod process;
mod ps;
mod rerun;
mod run;
mod serve;
mod tls;
mod token;
mod weights;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// Runs open models on your own machine, behind the HTTP APIs that programs already use.
///
/// Exit codes: 0 done, 1 it failed, 2 the words or the input were wrong, 130 interrupted, 141 nobody reads the output.
#[derive(Parser)]
#[command(name = "pinion", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    word: Word,
    /// Weights: use only what is on this machine, never the network. PINION_OFFLINE=1 says the same
    #[arg(long, global = true)]
    offline: bool,
}

#[derive(Subcommand)]
enum Word {
    /// Answer the Replicate HTTP API; GET /readyz says 200 once it serves.
    Serve(serve::Words),
    /// Answer the HTTP API of a Cog container, for one model: what runs Cog images can run this.
    Cog(cog::Words),
    /// Run one prediction here: text streams to stdout, everything else goes to stderr.
    Run(run::Words),
    /// Run a stored prediction again: the same output, or what differs.
    Rerun(rerun::Words),
    /// Write a cog.yaml and a weights.lock for a folder of weights.
    Init(init::Words),
    /// How a server stands: devices, models, memory, who waits for what.
    Ps(ps::Words),
    /// Whether a server takes predictions, as an exit code: for health checks.
    Health(health::Words),
    /// What this deployment serves, under which names and versions.
    Models(list::Words),
    /// Fetch, check and pin weights.
    #[command(subcommand)]
    Weights(weights::Word),
    /// API tokens: who may call a server that listens beyond this machine.
    #[command(subcommand)]
    Token(token::Word),
    /// Certificates for `serve --tls`.
    #[command(subcommand)]
    Tls(tls::Word),
    /// What this machine has, what would be chosen, and what is missing.
    Doctor(doctor::Words),
    /// Measure a model on this machine: prefill, decode, time to first token, memory.
    Bench(bench::Words),
    /// Own the device for a server: frames on stdin and stdout. Started by `serve`.
    #[command(hide = true)]
    Worker(launch::Words),
    /// What this executable is, and what the driver says. Asked by `serve` and `doctor`, in a process of its own.
    #[command(hide = true)]
    Probe(probe::Words),
    /// A model's numbers beside the reference's, on one device: `cargo xtask golden`.
    #[command(hide = true)]
    Golden(golden::Words),
}

fn main() -> ExitCode {
    let Cli { word, offline } = Cli::parse();
    if offline {
        // SAFETY: nothing has started a thread yet. Set, it reaches every worker.
        unsafe { std::env::set_var("PINION_OFFLINE", "1") };
    }
    match word {
        Word::Worker(_) => log_to_the_server(),
        Word::Serve(_) => log_to_stderr("info", "console"),
        Word::Cog(_) => log_to_stderr(cog::log_level(), "json"),
        _ => log_to_stderr("warn", "console"),
    }
    let outcome = match word {
        Word::Serve(words) => serve::main(words),
        Word::Cog(words) => cog::main(words),
        Word::Run(words) => run::main(words),
        Word::Rerun(words) => rerun::main(words),
        Word::Init(words) => init::main(words),
        Word::Ps(words) => ps::main(words),
        Word::Health(words) => health::main(words),
        Word::Models(words) => list::main(words),
        Word::Weights(word) => weights::main(word),
        Word::Token(word) => token::main(word),
        Word::Tls(word) => tls::main(word),
        Word::Doctor(words) => doctor::main(words),
        Word::Bench(words) => bench::main(words),
        Word::Worker(words) => launch::main(words),
        Word::Probe(words) => probe::main(words),
        Word::Golden(words) => golden::main(words),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure @ Failure::ReaderGone) => failure.exit_code(),
        Err(failure) => {
            eprintln!("pinion: {failure}");
            failure.exit_code()
        }
    }
}

/// `RUST_LOG` decides what is logged; `LOG_FORMAT`, `json` or `console`, how.
fn log_to_stderr(default: &str, format: &str) {
    use std::io::IsTerminal;
    let log = tracing_subscriber::fmt().with_env_filter(filter(default)).with_writer(std::io::stderr);
    if std::env::var("LOG_FORMAT").map_or(format == "json", |format| format == "json") {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
}

/// A worker's lines begin with their level; the server puts them into its own log.
fn log_to_the_server() {
    let log = tracing_subscriber::fmt().with_env_filter(filter("info")).with_writer(std::io::stderr);
    log.with_ansi(false).with_target(false).without_time().init();
}

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
}
