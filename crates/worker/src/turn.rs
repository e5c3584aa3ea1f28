//! The loop: hear what was said, step every loaded model once, tell what came of it.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use prediction::frame::{BUILD, Emitted, FromWorker, Hello, ToWorker};
use prediction::{Id, Job, LoadSpec, Outcome, PredictError};

use crate::seat::{Broken, Seat, ended};
use crate::shell::guarded;
use crate::{Owned, Registry};

/// How often the worker says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Runs until told to go, or until nobody listens any more. `send` answers false when the peer is gone.
pub fn run(registry: Registry, owned: Owned, inbox: Receiver<ToWorker>, send: impl FnMut(FromWorker) -> bool) {
    let mut worker =
        Worker { registry, seats: BTreeMap::new(), send, gone: false, draining: false, heard: Instant::now() };
    worker.say(FromWorker::Hello(Hello {
        build: BUILD.to_owned(),
        device: owned.device.clone(),
        name: owned.name.clone(),
        memory: (owned.memory)(),
    }));
    while !worker.gone {
        worker.hear(&inbox);
        worker.step_all();
        worker.beat();
        if worker.draining && worker.is_idle() {
            worker.say(FromWorker::Bye);
            return;
        }
    }
}

struct Worker<S> {
    registry: Registry,
    /// By target.
    seats: BTreeMap<String, Seat>,
    send: S,
    /// Nobody is listening, or we were told to stop.
    gone: bool,
    draining: bool,
    /// When the peer last had a word from us.
    heard: Instant,
}

impl<S: FnMut(FromWorker) -> bool> Worker<S> {
    fn say(&mut self, frame: FromWorker) {
        self.heard = Instant::now();
        self.gone |= !(self.send)(frame);
    }

    fn tell(&mut self, events: Vec<Emitted>) {
        if !events.is_empty() {
            self.say(FromWorker::Events(events));
        }
    }

    fn beat(&mut self) {
        if self.heard.elapsed() >= HEARTBEAT {
            self.say(FromWorker::Heartbeat);
        }
    }

    fn is_idle(&self) -> bool {
        self.seats.values().all(Seat::is_idle)
    }

    /// Waits for a frame while there is nothing to do, then takes whatever else has come.
    fn hear(&mut self, inbox: &Receiver<ToWorker>) {
        if self.is_idle() && !self.draining {
            match inbox.recv_timeout(HEARTBEAT.saturating_sub(self.heard.elapsed())) {
                Ok(frame) => self.obey(frame),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.gone = true,
            }
        }
        while !self.gone {
            match inbox.try_recv() {
                Ok(frame) => self.obey(frame),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.gone = true,
            }
        }
    }

    fn obey(&mut self, frame: ToWorker) {
        match frame {
            ToWorker::Hello(hello) if hello.build != BUILD => {
                tracing::error!(ours = BUILD, theirs = hello.build, "the server is of another build; leaving");
                self.gone = true;
            }
            ToWorker::Hello(_) => {}
            ToWorker::Load { spec, room_bytes } => self.load(spec, room_bytes),
            ToWorker::Unload { target } => self.unload(&target, "the model was unloaded"),
            ToWorker::Admit { target, attempt, job } => self.admit(&target, attempt, job),
            ToWorker::Cancel { id } => self.cancel(&id),
            ToWorker::Drain => self.draining = true,
            ToWorker::Exit => self.gone = true,
        }
    }

    fn load(&mut self, spec: LoadSpec, _room_bytes: Option<u64>) {
        let target = spec.target.clone();
        if self.seats.contains_key(&target) {
            self.unload(&target, "the model is being loaded again");
        }
        let began = Instant::now();
        let Some(model) = self.registry.get(&spec.model).cloned() else {
            let error = PredictError::Operator(format!("there is no model \"{}\" in this build", spec.model));
            return self.say(FromWorker::LoadFailed { target, error });
        };
        let loaded = guarded(|| {
            let mut report =
                |line: &str| self.say(FromWorker::Loading { target: target.clone(), line: line.to_owned() });
            let loaded = model.load(&spec, &mut report)?;
            let (bytes, capacity) = (loaded.bytes(), loaded.capacity().max(1));
            Ok((loaded, bytes, u32::try_from(capacity).unwrap_or(u32::MAX)))
        });
        match loaded {
            Ok((loaded, bytes, capacity)) => {
                self.seats.insert(target.clone(), Seat::new(loaded));
                let seconds = began.elapsed().as_secs_f64();
                self.say(FromWorker::Loaded { target, bytes, capacity, seconds });
            }
            Err(fault) => self.say(FromWorker::LoadFailed { target, error: fault.into_error() }),
        }
    }

    fn unload(&mut self, target: &str, why: &str) {
        if let Some(mut seat) = self.seats.remove(target) {
            let mut out = Vec::new();
            let Broken = seat.fail(&PredictError::Operator(why.to_owned()), &mut out);
            self.tell(out);
            self.say(FromWorker::Unloaded { target: target.to_owned(), why: None });
        }
    }

    /// What a call into a seat emitted; a broken model is gone afterwards.
    fn after(&mut self, target: &str, result: Result<(), Broken>, out: Vec<Emitted>) {
        self.tell(out);
        if let Err(Broken) = result {
            self.seats.remove(target);
            self.say(FromWorker::Unloaded { target: target.to_owned(), why: None });
        }
    }

    fn admit(&mut self, target: &str, attempt: u32, job: Job) {
        let mut out = Vec::new();
        let result = match self.seats.get_mut(target) {
            Some(seat) => seat.admit(attempt, job, &mut out),
            None => {
                let error = format!("{target} is not loaded in this worker");
                out.push(ended(job.id, attempt, Outcome::Failed { error }));
                Ok(())
            }
        };
        self.after(target, result, out);
    }

    /// An id that is not here has ended: its `Ended` is on its way.
    fn cancel(&mut self, id: &Id) {
        let mut out = Vec::new();
        let found = self.seats.iter_mut().find_map(|(target, seat)| match seat.cancel(id, &mut out) {
            Ok(false) => None,
            Ok(true) => Some((target.clone(), Ok(()))),
            Err(broken) => Some((target.clone(), Err(broken))),
        });
        if let Some((target, result)) = found {
            self.after(&target, result, out);
        }
    }

    fn step_all(&mut self) {
        let targets: Vec<String> = self.seats.iter().filter(|(_, s)| !s.is_idle()).map(|(t, _)| t.clone()).collect();
        for target in targets {
            if self.gone {
                return;
            }
            let mut out = Vec::new();
            let Some(seat) = self.seats.get_mut(&target) else { continue };
            let result = seat.step(&mut out);
            self.after(&target, result, out);
        }
    }
}
