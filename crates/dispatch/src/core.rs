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

use crate::lease::{Leasing, RENEW_EVERY};
use crate::live::{Live, Stage};
use crate::place::{Place, next_frame};
use crate::target::Target;
use crate::timers::{Due, Key, Timers};
use crate::{Health, Launch, Settings, SubmitError};

const SWEEP_EVERY: Duration = Duration::from_secs(60);

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
    pub leasing: Leasing,
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
    pub fn enqueue(&mut self, id: &Id) {
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
