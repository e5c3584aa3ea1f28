//! Rows in memory, gone with the process. For containers that forget, and for tests. Refuses to know disks.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use prediction::{Id, Numbered, Prediction, Request, Run, Timestamp};

use crate::files::File;
use crate::{
    Appended, CancelOutcome, Clock, Cursor, Delivery, Lease, ListQuery, Page, Renewed, Store, StoreError, Token, rules,
    secret, system_clock,
};

mod files;

pub struct MemoryStore {
    clock: Clock,
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    /// By key: in the order in which they came.
    predictions: BTreeMap<usize, Row>,
    keys: usize,
    by_id: HashMap<Id, usize>,
    by_stream_key: HashMap<String, usize>,
    newest: BTreeMap<(Timestamp, usize), ()>,
    /// Not ended, oldest first.
    open: BTreeMap<(Timestamp, usize), ()>,
    outbox: BTreeMap<i64, (Delivery, Timestamp)>,
    outbox_keys: i64,
    tokens: Vec<(Token, String)>,
    secrets: HashMap<String, String>,
    files: BTreeMap<i64, File>,
    file_keys: i64,
}

struct Row {
    prediction: Prediction,
    events: Vec<Numbered>,
    attempt: u32,
    owner: Option<String>,
    lease_until: Option<Timestamp>,
    cancel_requested: bool,
    run: Option<Run>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::with_clock(system_clock())
    }

    pub fn with_clock(clock: Clock) -> Self {
        Self { clock, rows: Mutex::default() }
    }

    /// Leaves nothing of a prediction that has ended: for a server that keeps no results.
    pub fn forget(&self, id: &Id) {
        let mut rows = self.rows();
        let ended = rows.row(id).filter(|(_, row)| row.prediction.status.is_terminal()).map(|(key, _)| key);
        let Some(key) = ended else { return };
        let Some(Row { prediction, .. }) = rows.predictions.remove(&key) else { return };
        rows.by_id.remove(id);
        rows.by_stream_key.remove(&prediction.request.stream_key);
        rows.newest.remove(&(prediction.request.created_at, key));
        rows.outbox.retain(|_, (delivery, _)| delivery.id != *id);
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // A panic under the lock is a defect of this file; the rows are still the best there is.
        self.rows.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Rows {
    fn row(&mut self, id: &Id) -> Option<(usize, &mut Row)> {
        let key = *self.by_id.get(id)?;
        Some((key, self.predictions.get_mut(&key)?))
    }

    /// After events were folded in: what follows from the end.
    fn settle(&mut self, key: usize) {
        let Some(Row { prediction, .. }) = self.predictions.get(&key) else { return };
        if !prediction.status.is_terminal() {
            return;
        }
        let id = prediction.request.id.clone();
        self.open.remove(&(prediction.request.created_at, key));
        if let Some((url, first_at)) = rules::completed_webhook(prediction) {
            self.outbox_keys += 1;
            let key = self.outbox_keys;
            let delivery = Delivery { key, id, msg_id: secret::new_message_id(), url, attempts: 0, first_at };
            self.outbox.insert(key, (delivery, first_at));
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, request: &Request) -> Result<(), StoreError> {
        let mut rows = self.rows();
        if rows.by_id.contains_key(&request.id) {
            return Err(rules::exists(&request.id));
        }
        rows.keys += 1;
        let key = rows.keys;
        rows.by_id.insert(request.id.clone(), key);
        rows.by_stream_key.insert(request.stream_key.clone(), key);
        rows.newest.insert((request.created_at, key), ());
        rows.open.insert((request.created_at, key), ());
        let row = Row {
            prediction: Prediction::new(request.clone()),
            events: Vec::new(),
            attempt: 0,
            owner: None,
            lease_until: None,
            cancel_requested: false,
            run: None,
        };
        rows.predictions.insert(key, row);
        Ok(())
    }

    async fn get(&self, id: &Id) -> Result<Option<Prediction>, StoreError> {
        Ok(self.rows().row(id).map(|(_, row)| row.prediction.clone()))
    }

    async fn by_stream_key(&self, key: &str) -> Result<Option<Id>, StoreError> {
        let rows = self.rows();
        Ok(rows.by_stream_key.get(key).map(|key| rows.predictions[key].prediction.request.id.clone()))
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        let rows = self.rows();
        let wanted = |&&(at, _): &&(Timestamp, usize)| {
            query.created_after.is_none_or(|after| at >= after) && query.created_before.is_none_or(|before| at < before)
        };
        let mut found: Vec<(Timestamp, usize)> = match query.cursor {
            Some(Cursor { created_at, key, back: true }) => {
                let newer = (Bound::Excluded((created_at, key as usize)), Bound::Unbounded);
                let newer = rows.newest.range(newer).map(|(place, ())| place);
                newer.filter(wanted).take(query.page_size + 1).copied().collect()
            }
            Some(Cursor { created_at, key, back: false }) => {
                let older = rows.newest.range(..(created_at, key as usize)).map(|(place, ())| place);
                older.rev().filter(wanted).take(query.page_size + 1).copied().collect()
            }
            None => rows.newest.keys().rev().filter(wanted).take(query.page_size + 1).copied().collect(),
        };
        let more = found.len() > query.page_size;
        found.truncate(query.page_size);
        let items = found.into_iter();
        let items = items.map(|(_, key)| (key as i64, rows.predictions[&key].prediction.clone())).collect();
        Ok(Page::around(query.cursor, items, more))
    }

    async fn events(&self, id: &Id, after: u64) -> Result<Vec<Numbered>, StoreError> {
        let mut rows = self.rows();
        let Some((_, row)) = rows.row(id) else { return Ok(Vec::new()) };
        Ok(row.events.iter().filter(|event| event.seq > after).cloned().collect())
    }

    async fn waiting(&self) -> Result<u64, StoreError> {
        let (rows, now) = (self.rows(), (self.clock)());
        let held_by_nobody = |(_, key): &&(Timestamp, usize)| rules::is_waiting(rows.predictions[key].lease_until, now);
        Ok(rows.open.keys().filter(held_by_nobody).count() as u64)
    }

    async fn lease(&self, owner: &str, max: usize) -> Result<Vec<Lease>, StoreError> {
        let (mut rows, now) = (self.rows(), (self.clock)());
        let keys: Vec<usize> = rows.open.keys().map(|&(_, key)| key).collect();
        let mut leases = Vec::new();
        for key in keys {
            if leases.len() == max {
                break;
            }
            let Some(row) = rows.predictions.get_mut(&key) else { continue };
            if rules::is_waiting(row.lease_until, now) {
                row.attempt += 1;
                row.owner = Some(owner.to_owned());
                row.lease_until = Some(rules::lease_until(now));
                let (attempt, cancel_requested) = (row.attempt, row.cancel_requested);
                leases.push(Lease { prediction: row.prediction.clone(), attempt, cancel_requested });
            }
        }
        Ok(leases)
    }

    async fn renew(&self, owner: &str, held: &[(Id, u32)]) -> Result<Vec<Renewed>, StoreError> {
        let (mut rows, now) = (self.rows(), (self.clock)());
        let renewed = held.iter().map(|(id, attempt)| {
            let ours = rows.row(id).map(|(_, row)| row).filter(|row| {
                !row.prediction.status.is_terminal() && row.attempt == *attempt && row.owner.as_deref() == Some(owner)
            });
            match ours {
                None => Renewed { id: id.clone(), lost: true, cancel_requested: false },
                Some(row) => {
                    row.lease_until = Some(rules::lease_until(now));
                    Renewed { id: id.clone(), lost: false, cancel_requested: row.cancel_requested }
                }
            }
        });
        Ok(renewed.collect())
    }

    async fn release(&self, owner: &str) -> Result<u64, StoreError> {
        let mut rows = self.rows();
        let keys: Vec<usize> = rows.open.keys().map(|&(_, key)| key).collect();
        let mut released = 0;
        for key in keys {
            let Some(row) = rows.predictions.get_mut(&key) else { continue };
            if row.owner.as_deref() == Some(owner) {
                (row.owner, row.lease_until) = (None, None);
                released += 1;
            }
        }
        Ok(released)
    }

    async fn append(&self, id: &Id, attempt: u32, events: &[Numbered]) -> Result<Appended, StoreError> {
        let mut rows = self.rows();
        let Some((key, row)) = rows.row(id) else { return Ok(Appended::Fenced) };
        if row.attempt != attempt {
            return Ok(Appended::Fenced);
        }
        if row.prediction.status.is_terminal() {
            let stored = events.last().and_then(|last| row.events.iter().find(|event| event.seq == last.seq));
            return Ok(if rules::is_repeat(events, stored) { Appended::Applied } else { Appended::Fenced });
        }
        let mut prediction = row.prediction.clone();
        let fresh = rules::fold(&mut prediction, events)?;
        row.events.extend(fresh.into_iter().map(|index| events[index].clone()));
        row.prediction = prediction;
        rows.settle(key);
        Ok(Appended::Applied)
    }

    async fn request_cancel(&self, id: &Id) -> Result<CancelOutcome, StoreError> {
        let (mut rows, now) = (self.rows(), (self.clock)());
        let Some((key, row)) = rows.row(id) else { return Ok(CancelOutcome::NotFound) };
        if row.prediction.status.is_terminal() {
            return Ok(CancelOutcome::Ended);
        }
        if !rules::is_waiting(row.lease_until, now) {
            row.cancel_requested = true;
            return Ok(CancelOutcome::Requested);
        }
        let end = rules::cancel_event(&row.prediction, now);
        rules::fold(&mut row.prediction, std::slice::from_ref(&end))?;
        row.events.push(end.clone());
        rows.settle(key);
        Ok(CancelOutcome::Canceled(end))
    }

    async fn note_run(&self, id: &Id, run: &Run) -> Result<(), StoreError> {
        if let Some((_, row)) = self.rows().row(id) {
            row.run = Some(run.clone());
        }
        Ok(())
    }

    async fn run(&self, id: &Id) -> Result<Option<Run>, StoreError> {
        Ok(self.rows().row(id).and_then(|(_, row)| row.run.clone()))
    }

    async fn outbox_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        let rows = self.rows();
        let mut due: Vec<_> = rows.outbox.values().filter(|(_, next)| *next <= now).collect();
        due.sort_by_key(|(delivery, next)| (*next, delivery.key));
        Ok(due.into_iter().take(limit).map(|(delivery, _)| delivery.clone()).collect())
    }

    async fn outbox_done(&self, key: i64) -> Result<(), StoreError> {
        self.rows().outbox.remove(&key);
        Ok(())
    }

    async fn outbox_retry(&self, key: i64, next: Timestamp) -> Result<(), StoreError> {
        if let Some((delivery, due)) = self.rows().outbox.get_mut(&key) {
            delivery.attempts += 1;
            *due = next;
        }
        Ok(())
    }

    async fn sweep(&self, ended_before: Timestamp) -> Result<u64, StoreError> {
        let mut rows = self.rows();
        let unsent: Vec<Id> = rows.outbox.values().map(|(delivery, _)| delivery.id.clone()).collect();
        let mut swept = 0;
        for row in rows.predictions.values_mut() {
            let prediction = &mut row.prediction;
            let old = prediction.completed_at.is_some_and(|ended| ended < ended_before);
            if old && !prediction.data_removed && !unsent.contains(&prediction.request.id) {
                prediction.remove_data();
                row.events = Vec::new();
                swept += 1;
            }
        }
        Ok(swept)
    }

    async fn token_create(&self, name: &str) -> Result<String, StoreError> {
        let mut rows = self.rows();
        if rows.tokens.iter().any(|(token, _)| token.name == name && !token.revoked) {
            return Err(rules::token_exists(name));
        }
        let text = secret::new_token();
        let (created_at, last_four) = ((self.clock)(), secret::last_four(&text));
        let token = Token { name: name.to_owned(), created_at, last_four, revoked: false };
        rows.tokens.push((token, secret::token_hash(&text)));
        Ok(text)
    }

    async fn token_list(&self) -> Result<Vec<Token>, StoreError> {
        Ok(self.rows().tokens.iter().map(|(token, _)| token.clone()).collect())
    }

    async fn token_revoke(&self, name: &str) -> Result<bool, StoreError> {
        let mut rows = self.rows();
        let found = rows.tokens.iter_mut().find(|(token, _)| token.name == name && !token.revoked);
        Ok(found.map(|(token, _)| token.revoked = true).is_some())
    }

    async fn token_check(&self, token: &str) -> Result<bool, StoreError> {
        let hash = secret::token_hash(token);
        Ok(self.rows().tokens.iter().any(|(token, known)| !token.revoked && *known == hash))
    }

    async fn secret(&self, name: &str) -> Result<String, StoreError> {
        let mut rows = self.rows();
        Ok(rows.secrets.entry(name.to_owned()).or_insert_with(secret::new_signing_secret).clone())
    }
}
