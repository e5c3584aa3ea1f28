//! One live prediction as dispatch keeps it: where it stands, the numbers it has given, what the store has not yet.
//! Knows no store and no worker.

use prediction::{Event, Id, Job, Map, Numbered, Outcome, Prediction, Request, Run, Timestamp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::inputs::Brought;
use crate::timers::Key;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its row is being written; nobody was told yet.
    Creating,
    /// Durable; our lease on it is on its way.
    Created,
    /// Leased, in the queue of its target.
    Waiting,
    /// Inside the worker.
    Running,
    /// Its last event has a number and is on its way to the store.
    Ended,
}

pub struct Live {
    pub target: String,
    pub input: Map,
    /// Scheme and host that its caller used.
    pub origin: String,
    /// Files that the input names.
    pub brought: Brought,
    pub seed: u64,
    pub deadline: Option<Timestamp>,
    pub stage: Stage,
    /// Of our lease; 0 before the first. Fences what we append.
    pub attempt: u32,
    /// Labels what the worker says: the attempt it was admitted with.
    pub admitted_as: u32,
    /// The place it runs in; means nothing while it does not.
    pub place: usize,
    /// When it came, as a number: those that wait are served in this order.
    pub arrived: u64,
    /// How often it was given to a worker in this process.
    pub runs: u32,
    /// The last number given.
    seq: u64,
    pub started: bool,
    pub has_output: bool,
    /// Said, but not in the store.
    pub pending: Vec<Numbered>,
    /// Under what it runs, where the store has not heard that.
    pub run: Option<Run>,
    /// An append is under way; the next waits for it, so that the order holds.
    pub writing: bool,
    /// We asked the worker to stop it, and this is what it ends as.
    pub stop: Option<Outcome>,
    pub waiting_since: Instant,
    /// The number in the last line that said how many are before it.
    pub said_behind: Option<usize>,
    pub deadline_timer: Option<Key>,
    pub run_timer: Option<Key>,
    /// Told when it has ended, durably.
    pub on_end: Vec<oneshot::Sender<()>>,
}

impl Live {
    pub fn new(request: &Request) -> Self {
        Self {
            target: request.target.clone(),
            input: request.input.clone(),
            origin: request.origin.clone(),
            brought: Brought::NotYet,
            seed: request.seed,
            deadline: request.deadline,
            stage: Stage::Creating,
            attempt: 0,
            admitted_as: 0,
            place: 0,
            arrived: 0,
            runs: 0,
            seq: 0,
            started: false,
            has_output: false,
            pending: Vec::new(),
            run: None,
            writing: false,
            stop: None,
            waiting_since: Instant::now(),
            said_behind: None,
            deadline_timer: None,
            run_timer: None,
            on_end: Vec::new(),
        }
    }

    /// One that an earlier life, or another process, left.
    pub fn recovered(prediction: &Prediction, attempt: u32) -> Self {
        Self {
            stage: Stage::Created,
            attempt,
            seq: prediction.last_seq,
            started: prediction.started_at.is_some(),
            has_output: prediction.output.is_some(),
            ..Self::new(&prediction.request)
        }
    }

    /// Accepted, not inside the worker, not ended.
    pub fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Creating | Stage::Created | Stage::Waiting)
    }

    /// Gives the event the next number and keeps it for the store.
    pub fn number(&mut self, at: Timestamp, event: Event) -> Numbered {
        self.seq += 1;
        self.started |= matches!(event, Event::Started | Event::Output(_));
        self.has_output |= matches!(event, Event::Output(_));
        let numbered = Numbered { seq: self.seq, at, event };
        self.pending.push(numbered.clone());
        numbered
    }

    pub fn job(&self, id: &Id) -> Job {
        Job { id: id.clone(), input: self.input.clone(), seed: self.seed }
    }
}
