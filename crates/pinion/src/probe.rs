//! `pinion probe`, a hidden word: what this executable is, and what the driver says, on lines of JSON. It is started by the
//! program itself, as a process that a broken driver may take down. Prints; refuses to judge.

use std::time::Duration;

use clap::Args;

use crate::failure::Failure;
use crate::out::print_line;

#[derive(Args)]
pub struct Words {
    /// This executable's version, family and toolkit; no driver is touched
    #[arg(long)]
    about: bool,
    /// Ask for free memory too, which takes a context on each GPU
    #[arg(long)]
    free: bool,
    /// The free bytes of one GPU, a line whenever they change, until killed
    #[arg(long, value_name = "NUMBER")]
    watch: Option<u32>,
}

/// Between two looks at a GPU's memory.
const LOOK: Duration = Duration::from_millis(5);

pub fn main(words: Words) -> Result<(), Failure> {
    if words.about {
        return print(&runner::device::about());
    }
    if let Some(number) = words.watch {
        return watch(number);
    }
    print(&runner::device::probe::ask(words.free))
}

fn print(value: &impl serde::Serialize) -> Result<(), Failure> {
    print_line!("{}", serde_json::to_string(value).map_err(Failure::failed)?);
    Ok(())
}

fn watch(number: u32) -> Result<(), Failure> {
    let (mut before, mut refused) = (None, Ok(()));
    let tell = |free_bytes: u64| {
        if before.replace(free_bytes) != Some(free_bytes) {
            refused = print(&free_bytes);
        }
        std::thread::sleep(LOOK);
        refused.is_ok()
    };
    runner::device::probe::watch(number, tell).map_err(Failure::Failed)?;
    refused
}
