//! What changes a prediction's state: events from its holder, and a cancel of one that nobody holds.

use prediction::{Id, Numbered, Prediction, Timestamp};
use sqlx::sqlite::SqliteConnection;

use crate::sqlite::reads::column;
use crate::sqlite::writer::{Change, Failure};
use crate::sqlite::{reads, rows};
use crate::{Appended, CancelOutcome, StoreError, rules, secret};

pub(in crate::sqlite) struct Append {
    id: Id,
    attempt: u32,
    events: Vec<Numbered>,
    /// Each event as its column holds it.
    texts: Vec<String>,
}

impl Append {
    pub(in crate::sqlite) fn new(id: &Id, attempt: u32, events: &[Numbered]) -> Result<Self, StoreError> {
        let texts: Result<_, _> = events.iter().map(|numbered| rows::write(&numbered.event)).collect();
        Ok(Self { id: id.clone(), attempt, events: events.to_vec(), texts: texts? })
    }

    /// Of an ended prediction: whether this is what ended it.
    async fn is_repeat(&self, rows: &mut SqliteConnection, key: i64) -> Result<bool, Failure> {
        let seq = self.events.last().map_or(0, |event| event.seq);
        let found = sqlx::query("SELECT seq, at, event FROM events WHERE prediction = ? AND seq = ?");
        let found = found.bind(key).bind(seq as i64).fetch_optional(rows).await?;
        let stored = found.map(|row| reads::event(&row)).transpose()?;
        Ok(rules::is_repeat(&self.events, stored.as_ref()))
    }
}

impl Change for Append {
    type Answer = Appended;

    fn is_durable(&self) -> bool {
        rules::has_end(&self.events)
    }

    fn bytes(&self) -> usize {
        self.texts.iter().map(String::len).sum()
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<Appended, Failure> {
        let Some(Stored { key, attempt, mut prediction, .. }) = load(rows, &self.id).await? else {
            return Ok(Appended::Fenced);
        };
        if attempt != self.attempt {
            return Ok(Appended::Fenced);
        }
        if prediction.status.is_terminal() {
            return Ok(if self.is_repeat(rows, key).await? { Appended::Applied } else { Appended::Fenced });
        }
        let fresh = rules::fold(&mut prediction, &self.events)?;
        if !fresh.is_empty() {
            let line = |index: usize| Line(self.events[index].seq, self.events[index].at.0, &self.texts[index]);
            let lines: Vec<Line> = fresh.into_iter().map(line).collect();
            save(rows, key, prediction, &lines).await?;
        }
        Ok(Appended::Applied)
    }
}

pub(in crate::sqlite) struct Cancel {
    pub(in crate::sqlite) id: Id,
    pub(in crate::sqlite) now: Timestamp,
}

impl Change for Cancel {
    type Answer = CancelOutcome;

    fn is_durable(&self) -> bool {
        true
    }

    async fn apply(&self, rows: &mut SqliteConnection) -> Result<CancelOutcome, Failure> {
        let Some(Stored { key, lease_until, mut prediction, .. }) = load(rows, &self.id).await? else {
            return Ok(CancelOutcome::NotFound);
        };
        if prediction.status.is_terminal() {
            return Ok(CancelOutcome::Ended);
        }
        if !rules::is_waiting(lease_until, self.now) {
            let wish = sqlx::query("UPDATE predictions SET cancel_requested = 1 WHERE key = ?").bind(key);
            wish.execute(rows).await?;
            return Ok(CancelOutcome::Requested);
        }
        let end = rules::cancel_event(&prediction, self.now);
        let text = rows::write(&end.event)?;
        rules::fold(&mut prediction, std::slice::from_ref(&end))?;
        save(rows, key, prediction, &[Line(end.seq, end.at.0, &text)]).await?;
        Ok(CancelOutcome::Canceled(end))
    }
}

/// A prediction as a change meets it, without its input.
struct Stored {
    key: i64,
    attempt: u32,
    lease_until: Option<Timestamp>,
    prediction: Prediction,
}

async fn load(rows: &mut SqliteConnection, id: &Id) -> Result<Option<Stored>, Failure> {
    let found = sqlx::query("SELECT key, attempt, lease_until, request, state FROM predictions WHERE id = ?");
    let Some(row) = found.bind(id.as_str()).fetch_optional(rows).await? else { return Ok(None) };
    let lease_until: Option<i64> = column(&row, 2)?;
    Ok(Some(Stored {
        key: column(&row, 0)?,
        attempt: column(&row, 1)?,
        lease_until: lease_until.map(Timestamp),
        prediction: rows::read(column(&row, 3)?, column(&row, 4)?, None)?,
    }))
}

/// An event as its row: number, time, text.
#[derive(serde::Serialize)]
struct Line<'a>(u64, i64, &'a str);

/// State, events and, after the end, the outbox: together. Everything that can be refused is, before the first row.
async fn save(
    rows: &mut SqliteConnection,
    key: i64,
    prediction: Prediction,
    lines: &[Line<'_>],
) -> Result<(), Failure> {
    let lines = rows::write(&lines)?;
    let ended_at = prediction.completed_at.map(|at| at.0);
    let webhook = rules::completed_webhook(&prediction);
    let state = rows::write_state(prediction)?;
    // Two statements in one go: each trip to the connection's thread costs more than a small statement.
    let save = sqlx::query(
        "INSERT INTO events (prediction, seq, at, event) \
         SELECT ?, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?); \
         UPDATE predictions SET state = ?, ended_at = ? WHERE key = ?",
    );
    save.bind(key).bind(lines).bind(state).bind(ended_at).bind(key).execute(&mut *rows).await?;
    if let Some((url, first_at)) = webhook {
        let post =
            sqlx::query("INSERT INTO outbox (prediction, msg_id, url, first_at, next_at) VALUES (?, ?, ?, ?, ?)");
        let post = post.bind(key).bind(secret::new_message_id()).bind(url).bind(first_at.0).bind(first_at.0);
        post.execute(rows).await?;
    }
    Ok(())
}
