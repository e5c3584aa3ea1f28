//! Leases: what of the store is ours to run, how we hold on to it, and what becomes of what an earlier life, or another
//! process, left. Refuses to know where it runs.

use prediction::{Id, Outcome, Timestamp};
use store::{Lease, Renewed, StoreError};
use tokio::time::{Duration, Instant};

use crate::core::{Core, Said};
use crate::live::{Live, Stage};
use crate::recover::{Verdict, verdict};
use crate::timers::Due;

/// Leases asked for at once.
const LEASE_BATCH: usize = 256;
/// Leases hold 30 s; this often they are renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Before leases are asked for again after the store failed.
const LEASE_AGAIN: Duration = Duration::from_secs(1);

/// One lease call at a time; `again` if something was created meanwhile.
#[derive(Default)]
pub struct Leasing {
    busy: bool,
    again: bool,
}

impl Core {
    /// Takes up what an earlier life left. When this returns all of it is live in the feed.
    pub async fn recover(&mut self) -> Result<(), StoreError> {
        self.store.release(&self.settings.owner).await?;
        loop {
            let leases = self.store.lease(&self.settings.owner, LEASE_BATCH).await?;
            let full = leases.len() == LEASE_BATCH;
            leases.into_iter().for_each(|lease| self.leased(lease));
            if !full {
                return Ok(());
            }
        }
    }

    /// Asks for leases on whatever nobody holds.
    pub fn want_leases(&mut self) {
        if self.draining.is_some() {
            return;
        }
        if self.leasing.busy {
            self.leasing.again = true;
            return;
        }
        self.leasing = Leasing { busy: true, again: false };
        let (store, owner, reports) = (self.store.clone(), self.settings.owner.clone(), self.reports.clone());
        tokio::spawn(async move {
            let result = store.lease(&owner, LEASE_BATCH).await;
            if let Some(reports) = reports.upgrade() {
                let _ = reports.send(Said::Leased(result));
            }
        });
    }

    pub fn leases(&mut self, result: Result<Vec<Lease>, StoreError>) {
        let again = std::mem::take(&mut self.leasing).again;
        match result {
            Ok(leases) => {
                let full = leases.len() == LEASE_BATCH;
                leases.into_iter().for_each(|lease| self.leased(lease));
                if again || full {
                    self.want_leases();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "no leases; asking again");
                self.timers.add(Instant::now() + LEASE_AGAIN, Due::Lease);
            }
        }
        self.drained_yet();
    }

    fn leased(&mut self, lease: Lease) {
        let id = lease.prediction.request.id.clone();
        if let Some(live) = self.live.get_mut(&id) {
            // Either its first lease, or ours ran out and we have it again: then it goes on under the new number.
            live.attempt = lease.attempt;
            if live.stage == Stage::Created {
                self.enqueue(&id);
            }
            return;
        }
        self.live.insert(id.clone(), Live::recovered(&lease.prediction, lease.attempt));
        self.feed.open(lease.prediction.clone());
        match verdict(&lease, Timestamp::now()) {
            Verdict::End(outcome) => self.finish(&id, outcome),
            Verdict::Wait { repeats } => {
                if repeats {
                    self.log(&id, "interrupted; running again\n");
                }
                self.enqueue(&id);
            }
        }
    }

    pub fn renew(&mut self) {
        self.timers.add(Instant::now() + RENEW_EVERY, Due::Renew);
        let held = self.live.iter().filter(|(_, live)| live.attempt > 0);
        let held: Vec<_> = held.map(|(id, live)| (id.clone(), live.attempt)).collect();
        let (store, owner, reports) = (self.store.clone(), self.settings.owner.clone(), self.reports.clone());
        tokio::spawn(async move {
            let result = if held.is_empty() { Ok(Vec::new()) } else { store.renew(&owner, &held).await };
            if let Some(reports) = reports.upgrade() {
                let _ = reports.send(Said::Renewed(held, result));
            }
        });
    }

    pub fn renewed(&mut self, held: Vec<(Id, u32)>, result: Result<Vec<Renewed>, StoreError>) {
        match result {
            Err(error) => tracing::warn!(%error, "leases could not be renewed"),
            Ok(renewed) => {
                for (renewed, (id, attempt)) in renewed.into_iter().zip(held) {
                    let Some(live) = self.live.get(&id) else { continue };
                    if live.stage == Stage::Ended || live.attempt != attempt {
                        continue;
                    }
                    if renewed.lost {
                        self.lost(&id);
                    } else if renewed.cancel_requested {
                        self.stop(&id, Outcome::Canceled);
                    }
                }
            }
        }
        // Ones that another process lost; also our own, had this process slept through its leases.
        self.want_leases();
    }
}
