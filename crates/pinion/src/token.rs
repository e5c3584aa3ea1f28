//! `pinion token`: who may call. Works on the database of the data folder, also while a server runs on it.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use store::{SqliteStore, Store, StoreError};

use crate::failure::Failure;
use crate::out::print_line;
use crate::paths;

#[derive(Subcommand)]
pub enum Word {
    /// Make a token and print it, once: only its hash is kept
    Create {
        /// What to call it, e.g. the machine or program that will use it
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Names, ages and last four characters
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Refuse it from now on
    Revoke {
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// The key that download addresses of uploaded files are signed with: HMAC-SHA256 of "OWNER ID EXPIRY", in base64
    FilesKey {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Args)]
pub struct Place {
    /// The server's data folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub fn main(word: Word) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(act(word))
}

async fn act(word: Word) -> Result<(), Failure> {
    match word {
        Word::Create { name, place } => {
            let made = open(place).await?.token_create(&name).await;
            let token = made.map_err(|error| match error {
                StoreError::Exists(_) => Failure::BadInput(format!("a token called {name:?} exists; revoke it first")),
                other => Failure::failed(other),
            })?;
            print_line!("{token}");
        }
        Word::List { place } => {
            for token in open(place).await?.token_list().await.map_err(Failure::failed)? {
                let state = if token.revoked { "  revoked" } else { "" };
                print_line!("{}  …{}  since {}{state}", token.name, token.last_four, token.created_at.rfc3339());
            }
        }
        Word::FilesKey { place } => {
            let key = open(place).await?.secret(api::FILES_SECRET).await.map_err(Failure::failed)?;
            print_line!("{key}");
        }
        Word::Revoke { name, place } => {
            if !open(place).await?.token_revoke(&name).await.map_err(Failure::failed)? {
                return Err(Failure::BadInput(format!("no token in use is called {name:?}")));
            }
        }
    }
    Ok(())
}

async fn open(place: Place) -> Result<SqliteStore, Failure> {
    let folder = paths::data(place.data);
    std::fs::create_dir_all(&folder).map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))?;
    SqliteStore::open(&folder.join(paths::DATABASE)).await.map_err(Failure::failed)
}
