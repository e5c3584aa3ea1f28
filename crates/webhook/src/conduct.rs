//! Who is told next. One loop: predictions that go live are followed, completed webhooks are taken from the outbox when
//! they are due and not before their prediction's follower is through; a slow receiver holds up nobody but itself.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use prediction::{Id, Request, Timestamp};
use store::Delivery;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{self, JoinSet};
use tokio::time::{Duration, Instant};

use crate::deliver::{Desk, receiver};
use crate::follow::follow;

/// Completed webhooks on the way at once, and to one receiver.
const AT_ONCE: usize = 64;
const AT_ONCE_PER_RECEIVER: usize = 8;
/// Outbox rows looked at together.
const PAGE: usize = 1024;
/// The outbox is looked at this often without being told to: another process may have died over a row.
const POLL_EVERY: Duration = Duration::from_secs(5);

enum Doing {
    Following(Id),
    /// The row's key and its receiver.
    Delivering(i64, String),
}

pub struct Conductor {
    desk: Arc<Desk>,
    /// Every task answers with the moment at which the outbox should be looked at again, if it knows one.
    tasks: JoinSet<Option<Timestamp>>,
    doing: HashMap<task::Id, Doing>,
    following: HashSet<Id>,
    /// Due, in the order in which they became so.
    due: VecDeque<Delivery>,
    /// Keys in `due` or on the way.
    taken: HashSet<i64>,
    on_the_way: HashMap<String, usize>,
    /// When rows become due again.
    retries: BTreeSet<Instant>,
    poll_at: Instant,
}

impl Conductor {
    pub fn new(desk: Arc<Desk>) -> Self {
        Self {
            desk,
            tasks: JoinSet::new(),
            doing: HashMap::new(),
            following: HashSet::new(),
            due: VecDeque::new(),
            taken: HashSet::new(),
            on_the_way: HashMap::new(),
            retries: BTreeSet::new(),
            poll_at: Instant::now(),
        }
    }

    pub async fn run(mut self, mut opened: UnboundedReceiver<Request>) {
        loop {
            tokio::select! {
                // Opened before polled: a row is not sent before its prediction is known to be followed.
                biased;
                request = opened.recv() => match request {
                    Some(request) => self.follow(request),
                    None => return,
                },
                Some(done) = self.tasks.join_next_with_id() => match done {
                    Ok((task, next)) => self.done(task, next),
                    Err(panicked) => {
                        tracing::error!(%panicked, "a webhook task broke");
                        self.done(panicked.id(), None);
                    }
                },
                () = tokio::time::sleep_until(self.poll_at) => self.poll(&mut opened).await,
            }
            self.send();
        }
    }

    fn follow(&mut self, request: Request) {
        if request.webhook.is_some() && self.following.insert(request.id.clone()) {
            let (id, desk) = (request.id.clone(), self.desk.clone());
            let task = self.tasks.spawn(async move {
                follow(desk, request).await;
                None
            });
            self.doing.insert(task.id(), Doing::Following(id));
        }
    }

    fn done(&mut self, task: task::Id, next: Option<Timestamp>) {
        match self.doing.remove(&task) {
            // Its completed webhook, if one is wanted, stands in the outbox now.
            Some(Doing::Following(id)) => {
                self.following.remove(&id);
                self.poll_at = Instant::now();
            }
            Some(Doing::Delivering(key, receiver)) => {
                self.taken.remove(&key);
                if let Some(count) = self.on_the_way.get_mut(&receiver) {
                    *count -= 1;
                    if *count == 0 {
                        self.on_the_way.remove(&receiver);
                    }
                }
                if let Some(next) = next {
                    let wait = u64::try_from(next.0 - (self.desk.clock)().0).unwrap_or(0);
                    let at = Instant::now() + Duration::from_micros(wait);
                    self.retries.insert(at);
                    self.poll_at = self.poll_at.min(at);
                }
            }
            None => {}
        }
    }

    async fn poll(&mut self, opened: &mut UnboundedReceiver<Request>) {
        let now = Instant::now();
        self.retries.retain(|at| *at > now);
        let next = now + POLL_EVERY;
        self.poll_at = self.retries.first().map_or(next, |at| next.min(*at));
        let rows = match self.desk.store.outbox_due((self.desk.clock)(), PAGE + self.taken.len()).await {
            Ok(rows) => rows,
            Err(error) => return tracing::warn!(%error, "the outbox cannot be read; trying again"),
        };
        // Whoever ended while the store was read was opened before that.
        while let Ok(request) = opened.try_recv() {
            self.follow(request);
        }
        for row in rows {
            if !self.following.contains(&row.id) && self.taken.insert(row.key) {
                self.due.push_back(row);
            }
        }
    }

    /// Sets off what may go, first come first served, past receivers that have their share on the way.
    fn send(&mut self) {
        let mut held = VecDeque::new();
        while self.on_the_way.values().sum::<usize>() < AT_ONCE
            && let Some(row) = self.due.pop_front()
        {
            let receiver = receiver(&row.url);
            let count = self.on_the_way.entry(receiver.clone()).or_default();
            if *count >= AT_ONCE_PER_RECEIVER {
                held.push_back(row);
                continue;
            }
            *count += 1;
            let (key, desk) = (row.key, self.desk.clone());
            let task = self.tasks.spawn(async move { desk.try_completed(&row).await });
            self.doing.insert(task.id(), Doing::Delivering(key, receiver));
        }
        held.append(&mut self.due);
        self.due = held;
    }
}
