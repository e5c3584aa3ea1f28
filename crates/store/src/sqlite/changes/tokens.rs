//! API tokens and signing secrets.

use prediction::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use crate::sqlite::writer::{Change, Failure};
use crate::{rules, secret};

pub(in crate::sqlite) struct Create {
    name: String,
    hash: String,
    last_four: String,
    now: Timestamp,
}

impl Create {
    pub(in crate::sqlite) fn new(name: &str, token: &str, now: Timestamp) -> Self {
        let (hash, last_four) = (secret::token_hash(token), secret::last_four(token));
        Self { name: name.to_owned(), hash, last_four, now }
    }
}

impl Change for Create {
    type Answer = ();

    fn is_durable(&self) -> bool {
        true
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<(), Failure> {
        let create = sqlx::query(
            "INSERT INTO tokens (name, hash, last_four, created_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING",
        );
        let create = create.bind(&self.name).bind(&self.hash).bind(&self.last_four).bind(self.now.0);
        let created = create.execute(rows).await?.rows_affected();
        if created == 1 { Ok(()) } else { Err(rules::token_exists(&self.name).into()) }
    }
}

pub(in crate::sqlite) struct Revoke {
    pub(in crate::sqlite) name: String,
    pub(in crate::sqlite) now: Timestamp,
}

impl Change for Revoke {
    type Answer = bool;

    fn is_durable(&self) -> bool {
        true
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<bool, Failure> {
        let revoke = sqlx::query("UPDATE tokens SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL");
        Ok(revoke.bind(self.now.0).bind(&self.name).execute(rows).await?.rows_affected() > 0)
    }
}

/// The secret of this name: what another handle made first, else the one offered here.
pub(in crate::sqlite) struct Secret {
    name: String,
    offer: String,
}

impl Secret {
    pub(in crate::sqlite) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), offer: secret::new_signing_secret() }
    }
}

impl Change for Secret {
    type Answer = String;

    fn is_durable(&self) -> bool {
        true
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<String, Failure> {
        let offer = sqlx::query("INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING");
        offer.bind(&self.name).bind(&self.offer).execute(&mut *rows).await?;
        let row = sqlx::query("SELECT value FROM secrets WHERE name = ?").bind(&self.name).fetch_one(rows).await?;
        Ok(row.try_get(0)?)
    }
}
