//! `pinion models`.

use clap::Args;

use crate::deployment::CogYaml;
use crate::failure::Failure;
use crate::out::print_line;

#[derive(Args)]
pub struct Words {
    #[command(flatten)]
    config: CogYaml,
}

pub fn main(words: Words) -> Result<(), Failure> {
    let deployment = words.config.load()?;
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
