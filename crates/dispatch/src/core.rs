//! The one owner of every live prediction: a loop over what callers ask, what the worker says, what the store answers
//! and what has come due. It never waits for the store itself: that is done in tasks that report back.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use prediction::frame::FromWorker;
use prediction::{Event, Id, Numbered, Outcome, Prediction, Request, Timestamp};
use store::feed::Feed;
use store::{Lease, Renewed, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant};

use crate::live::{Live, Stage};
use crate::place::{Place, next_frame};
use crate::recover::{Verdict, verdict};
use crate::target::Target;
use crate::timers::{Due, Key, Timers};
use crate::{Health, Launch, Settings, SubmitError};

/// Leases asked for at once.
const LEASE_BATCH: usize = 256;
/// Leases hold 30 s; this often they are renewed.
const RENEW_EVERY: Duration = Duration::from_secs(5);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Before leases are asked for again after the store failed.
const LEASE_AGAIN: Duration = Duration::from_secs(1);

/// Before it come those that are wanted unasked.
const FIRST_ARRIVAL: u64 = 1;

/// What is said to the core.
pub enum Said {
    Submit(Box<Request>, oneshot::Sender<Result<Prediction, SubmitError>>),
    /// Answered by whether it is live here, and then by its end.
    Cancel(Id, oneshot::Sender<bool>, oneshot::Sender<()>),
    Drain(oneshot::Sender<()>),
    Created(Id, Result<(), StoreError>),
    Leased(Result<Vec<Lease>, StoreError>),
    Renewed(Vec<(Id, u32)>, Result<Vec<Renewed>, StoreError>),
    Written(crate::write::Written),
    Released,
}

/// One lease call at a time; `again` if something was created meanwhile.
#[derive(Default)]
struct Leasing {
    busy: bool,
    again: bool,
}

#[derive(Default)]
pub struct Draining {
    pub asked: Vec<oneshot::Sender<()>>,
    pub releasing: bool,
    pub done: bool,
}

pub struct Core {
    pub store: Arc<dyn Store>,
    pub feed: Feed,
    pub launch: Arc<dyn Launch>,
    pub settings: Settings,
    /// For the tasks that report back; weak, so that the last handle's end is the core's.
    pub reports: mpsc::WeakUnboundedSender<Said>,
    pub live: HashMap<Id, Live>,
    pub targets: BTreeMap<String, Target>,
    /// One per device, in the order of the settings.
    pub places: Vec<Place>,
    pub timers: Timers,
    /// Something happened that may let somebody in, or that people should see.
    pub changed: bool,
    /// When something has to be unloaded or may be loaded again.
    pub route_timer: Option<(Instant, Key)>,
    /// Predictions that came so far.
    arrivals: u64,
    pub flush_set: bool,
    pub positions_set: bool,
    leasing: Leasing,
    pub draining: Option<Draining>,
    /// As of the given moment.
    pub health: Arc<Mutex<(Health, Instant)>>,
}

impl Core {
    pub fn new(
        store: Arc<dyn Store>,
        feed: Feed,
        launch: Arc<dyn Launch>,
        settings: Settings,
        reports: mpsc::WeakUnboundedSender<Said>,
        health: Arc<Mutex<(Health, Instant)>>,
    ) -> Self {
        let targets =
            settings.served.iter().map(|served| (served.spec.target.clone(), Target::new(served.clone()))).collect();
        let places = settings.devices.iter().map(Place::new).collect();
        let mut timers = Timers::default();
        timers.add(Instant::now() + RENEW_EVERY, Due::Renew);
        timers.add(Instant::now() + SWEEP_EVERY, Due::Sweep);
        Self {
            store,
            feed,
            launch,
            settings,
            reports,
            live: HashMap::new(),
            targets,
            places,
            timers,
            changed: true,
            route_timer: None,
            arrivals: FIRST_ARRIVAL,
            flush_set: false,
            positions_set: false,
            leasing: Leasing::default(),
            draining: None,
            health,
        }
    }

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

    pub async fn run(mut self, mut said: mpsc::UnboundedReceiver<Said>) {
        (0..self.places.len()).for_each(|place| self.launch(place));
        self.look_later();
        let mut first = 0;
        loop {
            if std::mem::take(&mut self.changed) {
                self.route();
                self.show_health();
            }
            let due = self.timers.next();
            tokio::select! {
                said = said.recv() => match said {
                    Some(said) => self.hear(said),
                    None => return,
                },
                (place, frame) = next_frame(&mut self.places, first) => {
                    first = place + 1;
                    self.heard(place, frame);
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.ring(),
            }
        }
    }

    fn hear(&mut self, said: Said) {
        self.changed = true;
        match said {
            Said::Submit(request, answer) => self.submit(*request, answer),
            Said::Cancel(id, here, ended) => self.cancel(&id, here, ended),
            Said::Drain(asked) => self.drain(asked),
            Said::Created(id, result) => self.created(&id, result),
            Said::Leased(result) => self.leases(result),
            Said::Renewed(held, result) => self.renewed(held, result),
            Said::Written(written) => self.written(written),
            Said::Released => self.released(),
        }
    }

    fn heard(&mut self, place: usize, frame: Option<FromWorker>) {
        // What a step emitted changes nothing for those who wait, unless somebody ended: `leave` sees that.
        self.changed |= !matches!(frame, Some(FromWorker::Events(_) | FromWorker::Heartbeat));
        match frame {
            Some(frame) => {
                self.places[place].silent_looks = 0;
                self.frame(place, frame);
            }
            None => self.worker_lost(place, "the worker was lost"),
        }
        self.drained_yet();
    }

    fn ring(&mut self) {
        let now = Instant::now();
        while let Some(due) = self.timers.take(now) {
            self.changed = true;
            match due {
                Due::Flush => self.flush_all(),
                Due::Renew => self.renew(),
                Due::Sweep => self.sweep(),
                Due::Lease => self.want_leases(),
                Due::Launch(place) => self.launch(place),
                Due::Route => self.route_timer = None,
                Due::Look => self.look(),
                Due::Positions => self.say_positions(),
                Due::Deadline(id) => self.deadline(&id),
                Due::RunLimit(id) => self.run_limit(&id),
                Due::DrainLimit => self.drain_limit(),
                Due::DrainGivesUp => self.drain_gives_up(),
            }
        }
    }

    fn submit(&mut self, request: Request, answer: oneshot::Sender<Result<Prediction, SubmitError>>) {
        let limit = self.settings.waiting_limit;
        let waiting = self.waiting();
        // Nobody listens to an answer whose caller has gone; that is theirs to choose.
        if self.draining.is_some() {
            let _ = answer.send(Err(SubmitError::Draining));
        } else if waiting >= limit {
            let _ = answer.send(Err(SubmitError::Full { waiting, limit }));
        } else if self.live.contains_key(&request.id) {
            let _ = answer.send(Err(StoreError::Exists(request.id.to_string()).into()));
        } else {
            self.live.insert(request.id.clone(), Live::new(&request));
            let (store, feed, reports) = (self.store.clone(), self.feed.clone(), self.reports.clone());
            tokio::spawn(async move {
                let result = store.create(&request).await;
                let id = request.id.clone();
                let prediction = Prediction::new(request);
                if result.is_ok() {
                    feed.open(prediction.clone());
                }
                if let Some(reports) = reports.upgrade() {
                    let _ = reports.send(Said::Created(id, result.clone()));
                }
                let _ = answer.send(result.map(|()| prediction).map_err(SubmitError::from));
            });
        }
    }

    fn created(&mut self, id: &Id, result: Result<(), StoreError>) {
        let Some(live) = self.live.get_mut(id) else { return };
        if result.is_err() {
            self.live.remove(id);
            return self.drained_yet();
        }
        live.stage = Stage::Created;
        if live.attempt == 0 {
            self.want_leases();
        } else {
            // Another creation's lease call took this one along before we knew that it was written.
            self.enqueue(id);
        }
        self.drained_yet();
    }

    /// A prediction whose lease we have takes its place in the queue of its target.
    fn enqueue(&mut self, id: &Id) {
        let now = Instant::now();
        let Some(live) = self.live.get_mut(id) else { return };
        live.stage = Stage::Waiting;
        live.waiting_since = now;
        self.arrivals += 1;
        live.arrived = self.arrivals;
        if let Some(outcome) = live.stop.take() {
            return self.finish(id, outcome);
        }
        if let Some(deadline) = live.deadline {
            let Some(left) = u64::try_from(deadline.0 - Timestamp::now().0).ok().filter(|left| *left > 0) else {
                return self.deadline(id);
            };
            let at = now + Duration::from_micros(left);
            live.deadline_timer = Some(self.timers.add(at, Due::Deadline(id.clone())));
        }
        let target = live.target.clone();
        if !self.targets.contains_key(&target) {
            let error = format!("{target} is not served here any more");
            return self.finish(id, Outcome::Failed { error });
        }
        if let Some(hopeless) = self.hopeless(&target, now) {
            return self.finish(id, Outcome::Failed { error: hopeless.refusal(now) });
        }
        if let Some(there) = self.targets.get_mut(&target) {
            there.queue.push_back(id.clone());
        }
        self.log_joining(&target, id);
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

    fn leases(&mut self, result: Result<Vec<Lease>, StoreError>) {
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

    fn renew(&mut self) {
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

    fn renewed(&mut self, held: Vec<(Id, u32)>, result: Result<Vec<Renewed>, StoreError>) {
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

    fn sweep(&mut self) {
        self.timers.add(Instant::now() + SWEEP_EVERY, Due::Sweep);
        let keep = i64::try_from(self.settings.retention_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        let store = self.store.clone();
        tokio::spawn(async move {
            if let Err(error) = store.sweep(Timestamp::now().plus_millis(-keep)).await {
                tracing::warn!(%error, "the retention sweep failed; it runs again in a minute");
            }
        });
    }

    /// Numbers an event, tells the live readers, and sees that the store hears of it soon.
    pub fn say(&mut self, id: &Id, at: Timestamp, event: Event) {
        let Some(live) = self.live.get_mut(id) else { return };
        let numbered: Numbered = live.number(at, event);
        let _ = self.feed.publish(id, numbered);
        self.flush_soon();
    }

    pub fn log(&mut self, id: &Id, line: &str) {
        self.say(id, Timestamp::now(), Event::Log(line.to_owned()));
    }
}
