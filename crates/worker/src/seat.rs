//! One loaded model and who is inside. Everything that happens to its predictions is written to `out` in order, and
//! nobody leaves without an `Ended`, unless the model breaks: then all of them are the server's, to try again or to end.
//! Knows nothing of frames and channels.

use std::collections::{HashMap, VecDeque};

use prediction::frame::Emitted;
use prediction::{Event, Id, Job, Kept, Loaded, Outcome, PredictError};

use crate::kept::Key;
use crate::shell::{Fault, guarded};

/// The model is of no more use, and this is why: it must be dropped.
pub struct Broken(pub PredictError);

pub struct Seat {
    loaded: Box<dyn Loaded>,
    key: Key,
    /// Inside the model, with the attempt each belongs to.
    inside: HashMap<Id, u32>,
    /// Beyond capacity. Dispatch does not exceed it, but nothing that was said here is lost.
    queue: VecDeque<(u32, Job)>,
}

impl Seat {
    pub fn new(loaded: Box<dyn Loaded>, key: Key) -> Self {
        Self { loaded, key, inside: HashMap::new(), queue: VecDeque::new() }
    }

    pub fn is_idle(&self) -> bool {
        self.inside.is_empty() && self.queue.is_empty()
    }

    pub fn admit(&mut self, attempt: u32, job: Job, out: &mut Vec<Emitted>) -> Result<(), Broken> {
        self.queue.push_back((attempt, job));
        self.fill(out)
    }

    /// Lets those in front of the queue in while there is room.
    fn fill(&mut self, out: &mut Vec<Emitted>) -> Result<(), Broken> {
        let loaded = &mut self.loaded;
        while !self.queue.is_empty() {
            if !guarded(|| Ok(loaded.active() < loaded.capacity())).map_err(broken)? {
                return Ok(());
            }
            let Some((attempt, job)) = self.queue.pop_front() else { return Ok(()) };
            let id = job.id.clone();
            match guarded(|| loaded.admit(job)) {
                Ok(()) => {
                    self.inside.insert(id.clone(), attempt);
                    out.push(Emitted { id, attempt, event: Event::Started });
                }
                Err(fault) if fault.breaks_the_model() => return Err(broken(fault)),
                Err(fault) => out.push(ended(id, attempt, failed(&fault.into_error()))),
            }
        }
        Ok(())
    }

    /// One unit of work for everybody inside.
    pub fn step(&mut self, out: &mut Vec<Emitted>) -> Result<(), Broken> {
        if self.inside.is_empty() {
            return self.fill(out);
        }
        let (loaded, inside) = (&mut self.loaded, &mut self.inside);
        let stepped = guarded(|| {
            loaded.step(&mut |id, event| {
                let attempt = match &event {
                    // Said at admission.
                    Event::Started => None,
                    Event::Ended(_) => inside.remove(id),
                    _ => inside.get(id).copied(),
                };
                // An id that is not inside has ended or was cancelled: nothing follows that.
                if let Some(attempt) = attempt {
                    out.push(Emitted { id: id.clone(), attempt, event });
                }
            })?;
            Ok(loaded.active())
        });
        // A model that forgot somebody would leave them waiting for ever.
        if stepped.map_err(broken)? == 0 {
            let error = PredictError::Operator("the model dropped the prediction without a word".to_owned());
            out.extend(self.inside.drain().map(|(id, attempt)| ended(id, attempt, failed(&error))));
        }
        self.fill(out)
    }

    /// Whether it was here.
    pub fn cancel(&mut self, id: &Id, out: &mut Vec<Emitted>) -> Result<bool, Broken> {
        if let Some(place) = self.queue.iter().position(|(_, job)| job.id == *id) {
            if let Some((attempt, _)) = self.queue.remove(place) {
                out.push(ended(id.clone(), attempt, Outcome::Canceled));
            }
            return Ok(true);
        }
        let Some(attempt) = self.inside.remove(id) else { return Ok(false) };
        out.push(ended(id.clone(), attempt, Outcome::Canceled));
        let loaded = &mut self.loaded;
        let forgotten = guarded(|| {
            loaded.cancel(id);
            Ok(())
        });
        forgotten.map_err(broken)?;
        self.fill(out).map(|()| true)
    }

    /// Which weights it was loaded with.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The host's memory that `keep` takes.
    pub fn kept_bytes(&self) -> Result<u64, PredictError> {
        guarded(|| Ok(self.loaded.kept_bytes())).map_err(Fault::into_error)
    }

    /// A copy for the next load, which is made before the model is closed.
    pub fn keep(&self) -> Result<Option<Box<dyn Kept>>, PredictError> {
        guarded(|| self.loaded.keep()).map_err(Fault::into_error)
    }

    /// Frees what the model holds.
    pub fn close(self) {
        // A destructor of a broken model may panic; there is nobody to tell.
        let _ = guarded(|| {
            drop(self.loaded);
            Ok(())
        });
    }
}

fn broken(fault: Fault) -> Broken {
    Broken(fault.into_error())
}

fn failed(error: &PredictError) -> Outcome {
    Outcome::Failed { error: error.text().to_owned() }
}

pub fn ended(id: Id, attempt: u32, outcome: Outcome) -> Emitted {
    Emitted { id, attempt, event: Event::Ended(outcome) }
}
