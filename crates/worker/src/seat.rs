//! One loaded model and who is inside. Everything that happens to its predictions is written to `out` in order, and
//! nobody leaves without an `Ended`. Knows nothing of frames and channels.

use std::collections::{HashMap, VecDeque};

use prediction::frame::Emitted;
use prediction::{Event, Id, Job, Loaded, Outcome, PredictError};

use crate::shell::{Fault, guarded};

/// The model is broken and must be dropped; its predictions have been ended.
pub struct Broken;

pub struct Seat {
    loaded: Option<Box<dyn Loaded>>,
    /// Inside the model, with the attempt each belongs to.
    inside: HashMap<Id, u32>,
    /// Beyond capacity. Dispatch does not exceed it, but nothing that was said here is lost.
    queue: VecDeque<(u32, Job)>,
}

impl Seat {
    pub fn new(loaded: Box<dyn Loaded>) -> Self {
        Self { loaded: Some(loaded), inside: HashMap::new(), queue: VecDeque::new() }
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
        while let Some(loaded) = &mut self.loaded
            && !self.queue.is_empty()
        {
            match guarded(|| Ok(loaded.active() < loaded.capacity())) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(fault) => return Err(self.fail(&fault.into_error(), out)),
            }
            let Some((attempt, job)) = self.queue.pop_front() else { return Ok(()) };
            let id = job.id.clone();
            self.inside.insert(id.clone(), attempt);
            match guarded(|| loaded.admit(job)) {
                Ok(()) => out.push(Emitted { id, attempt, event: Event::Started }),
                Err(Fault::Refused(error)) => {
                    self.inside.remove(&id);
                    out.push(ended(id, attempt, failed(&error)));
                }
                Err(panic) => return Err(self.fail(&panic.into_error(), out)),
            }
        }
        Ok(())
    }

    /// One unit of work for everybody inside.
    pub fn step(&mut self, out: &mut Vec<Emitted>) -> Result<(), Broken> {
        let Some(loaded) = &mut self.loaded else { return Ok(()) };
        if self.inside.is_empty() {
            return self.fill(out);
        }
        let inside = &mut self.inside;
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
        match stepped {
            // A model that forgot somebody would leave them waiting for ever.
            Ok(0) if !self.inside.is_empty() => {
                let error = PredictError::Operator("the model dropped the prediction without a word".to_owned());
                self.end_inside(&error, out);
                self.fill(out)
            }
            Ok(_) => self.fill(out),
            Err(fault) => Err(self.fail(&fault.into_error(), out)),
        }
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
        let Some(loaded) = &mut self.loaded else { return Ok(true) };
        let forgotten = guarded(|| {
            loaded.cancel(id);
            Ok(())
        });
        match forgotten {
            Ok(()) => self.fill(out).map(|()| true),
            Err(fault) => Err(self.fail(&fault.into_error(), out)),
        }
    }

    /// Ends everybody and drops the model.
    pub fn fail(&mut self, error: &PredictError, out: &mut Vec<Emitted>) -> Broken {
        self.end_inside(error, out);
        for (attempt, job) in self.queue.drain(..) {
            out.push(ended(job.id, attempt, failed(error)));
        }
        let loaded = self.loaded.take();
        // A destructor of a broken model may panic too; there is nobody left to tell.
        let _ = guarded(|| {
            drop(loaded);
            Ok(())
        });
        Broken
    }

    fn end_inside(&mut self, error: &PredictError, out: &mut Vec<Emitted>) {
        out.extend(self.inside.drain().map(|(id, attempt)| ended(id, attempt, failed(error))));
    }
}

fn failed(error: &PredictError) -> Outcome {
    Outcome::Failed { error: error.text().to_owned() }
}

pub fn ended(id: Id, attempt: u32, outcome: Outcome) -> Emitted {
    Emitted { id, attempt, event: Event::Ended(outcome) }
}
