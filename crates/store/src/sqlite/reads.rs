//! Questions. Each is one statement on a read connection, so its answer is one moment's.

use prediction::{Id, Numbered, Prediction, Run, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqlitePool};

use super::rows::{self, unavailable};
use crate::{Cursor, Delivery, ListQuery, Page, StoreError, Token};

const GET: &str = "SELECT p.key, p.request, p.state, i.input FROM predictions p \
     LEFT JOIN inputs i ON i.prediction = p.key WHERE p.id = ?";

const OLDER: &str = "SELECT p.key, p.request, p.state, i.input FROM predictions p \
     LEFT JOIN inputs i ON i.prediction = p.key \
     WHERE p.kind = 'prediction' AND p.created_at >= ? AND p.created_at < ? AND (p.created_at, p.key) < (?, ?) \
     ORDER BY p.created_at DESC, p.key DESC LIMIT ?";

const NEWER: &str = "SELECT p.key, p.request, p.state, i.input FROM predictions p \
     LEFT JOIN inputs i ON i.prediction = p.key \
     WHERE p.kind = 'prediction' AND p.created_at >= ? AND p.created_at < ? AND (p.created_at, p.key) > (?, ?) \
     ORDER BY p.created_at, p.key LIMIT ?";

/// The key and the prediction of a row of the statements above.
pub(super) fn prediction(row: &SqliteRow) -> Result<(i64, Prediction), StoreError> {
    let input: Option<&str> = column(row, 3)?;
    Ok((column(row, 0)?, rows::read(column(row, 1)?, column(row, 2)?, input)?))
}

pub(super) fn column<'r, T>(row: &'r SqliteRow, index: usize) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(index).map_err(|why| StoreError::Broken(why.to_string()))
}

pub(super) async fn get(pool: &SqlitePool, id: &Id) -> Result<Option<Prediction>, StoreError> {
    let row = sqlx::query(GET).bind(id.as_str()).fetch_optional(pool).await.map_err(|why| unavailable(&why))?;
    row.map(|row| Ok(prediction(&row)?.1)).transpose()
}

pub(super) async fn by_stream_key(pool: &SqlitePool, key: &str) -> Result<Option<Id>, StoreError> {
    let found = sqlx::query("SELECT id FROM predictions WHERE stream_key = ? ORDER BY key DESC LIMIT 1").bind(key);
    let row = found.fetch_optional(pool).await.map_err(|why| unavailable(&why))?;
    row.map(|row| Ok(Id(column(&row, 0)?))).transpose()
}

pub(super) async fn list(pool: &SqlitePool, query: &ListQuery) -> Result<Page, StoreError> {
    let back = query.cursor.is_some_and(|cursor| cursor.back);
    let from = query.cursor.unwrap_or(Cursor { created_at: Timestamp(i64::MAX), key: i64::MAX, back: false });
    // The cursor narrows the range of times too: that is what the index can use to start at the page.
    let after = query.created_after.map_or(i64::MIN, |after| after.0);
    let before = query.created_before.map_or(i64::MAX, |before| before.0);
    let (after, before) = if back {
        (after.max(from.created_at.0), before)
    } else {
        (after, before.min(from.created_at.0.saturating_add(1)))
    };
    let found = sqlx::query(if back { NEWER } else { OLDER })
        .bind(after)
        .bind(before)
        .bind(from.created_at.0)
        .bind(from.key)
        .bind(query.page_size as i64 + 1);
    let found = found.fetch_all(pool).await.map_err(|why| unavailable(&why))?;
    let items: Result<Vec<_>, _> = found.iter().take(query.page_size).map(prediction).collect();
    Ok(Page::around(query.cursor, items?, found.len() > query.page_size))
}

pub(super) async fn events(pool: &SqlitePool, id: &Id, after: u64) -> Result<Vec<Numbered>, StoreError> {
    let found = sqlx::query(
        "SELECT seq, at, event FROM events \
         WHERE prediction = (SELECT key FROM predictions WHERE id = ?) AND seq > ? ORDER BY seq",
    );
    let found = found.bind(id.as_str()).bind(i64::try_from(after).unwrap_or(i64::MAX));
    let found = found.fetch_all(pool).await.map_err(|why| unavailable(&why))?;
    found.iter().map(event).collect()
}

pub(super) async fn run(pool: &SqlitePool, id: &Id) -> Result<Option<Run>, StoreError> {
    let found = sqlx::query("SELECT run FROM runs WHERE prediction = (SELECT key FROM predictions WHERE id = ?)");
    let row = found.bind(id.as_str()).fetch_optional(pool).await.map_err(|why| unavailable(&why))?;
    row.map(|row| rows::parse(column(&row, 0)?)).transpose()
}

/// From the columns seq, at, event.
pub(super) fn event(row: &SqliteRow) -> Result<Numbered, StoreError> {
    let (seq, at): (i64, i64) = (column(row, 0)?, column(row, 1)?);
    Ok(Numbered { seq: seq as u64, at: Timestamp(at), event: rows::parse(column(row, 2)?)? })
}

pub(super) async fn waiting(pool: &SqlitePool, now: Timestamp) -> Result<u64, StoreError> {
    let count = sqlx::query(
        "SELECT count(*) FROM predictions INDEXED BY predictions_open \
         WHERE kind = 'prediction' AND ended_at IS NULL AND (lease_until IS NULL OR lease_until <= ?)",
    );
    let row = count.bind(now.0).fetch_one(pool).await.map_err(|why| unavailable(&why))?;
    Ok(column::<i64>(&row, 0)? as u64)
}

pub(super) async fn outbox_due(pool: &SqlitePool, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError> {
    let found = sqlx::query(
        "SELECT o.key, p.id, o.msg_id, o.url, o.attempts, o.first_at FROM outbox o \
         JOIN predictions p ON p.key = o.prediction WHERE o.next_at <= ? ORDER BY o.next_at, o.key LIMIT ?",
    );
    let found = found.bind(now.0).bind(limit as i64).fetch_all(pool).await.map_err(|why| unavailable(&why))?;
    let delivery = |row: &SqliteRow| {
        Ok(Delivery {
            key: column(row, 0)?,
            id: Id(column(row, 1)?),
            msg_id: column(row, 2)?,
            url: column(row, 3)?,
            attempts: column(row, 4)?,
            first_at: Timestamp(column(row, 5)?),
        })
    };
    found.iter().map(delivery).collect()
}

pub(super) async fn tokens(pool: &SqlitePool) -> Result<Vec<Token>, StoreError> {
    let found = sqlx::query("SELECT name, created_at, last_four, revoked_at IS NOT NULL FROM tokens ORDER BY key");
    let found = found.fetch_all(pool).await.map_err(|why| unavailable(&why))?;
    let token = |row: &SqliteRow| {
        Ok(Token {
            name: column(row, 0)?,
            created_at: Timestamp(column(row, 1)?),
            last_four: column(row, 2)?,
            revoked: column(row, 3)?,
        })
    };
    found.iter().map(token).collect()
}

/// By the hash, so what the time of the search tells is about a hash that nobody can aim.
pub(super) async fn token_is_known(pool: &SqlitePool, hash: &str) -> Result<bool, StoreError> {
    let found = sqlx::query("SELECT 1 FROM tokens WHERE hash = ? AND revoked_at IS NULL").bind(hash);
    Ok(found.fetch_optional(pool).await.map_err(|why| unavailable(&why))?.is_some())
}

pub(super) async fn secret(pool: &SqlitePool, name: &str) -> Result<Option<String>, StoreError> {
    let found = sqlx::query("SELECT value FROM secrets WHERE name = ?").bind(name);
    let row = found.fetch_optional(pool).await.map_err(|why| unavailable(&why))?;
    row.map(|row| column(&row, 0)).transpose()
}
