//! The loop: hear what was said, step every loaded model once, tell what came of it.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use prediction::frame::{BUILD, Emitted, FromWorker, Hello, ToWorker};
use prediction::{Id, Job, LoadSpec, Outcome, PredictError};

use crate::kept::{Copies, Key};
use crate::seat::{Broken, Seat, ended};
use crate::shell::{Fault, guarded};
use crate::{Owned, Registry, memory};

/// How often the worker says that it is alive.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// Runs until told to go, until nobody listens any more, or until the device is lost. `send` answers false when the peer
/// is gone.
pub fn run(registry: Registry, owned: Owned, inbox: Receiver<ToWorker>, send: impl FnMut(FromWorker) -> bool) {
    let mut worker = Worker {
        registry,
        copies: Copies::within(owned.host_cache_bytes),
        told_copies: 0,
        owned,
        seats: BTreeMap::new(),
        send,
        gone: false,
        draining: false,
        heard: Instant::now(),
    };
    worker.greet();
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
    owned: Owned,
    /// By target.
    seats: BTreeMap<String, Seat>,
    /// Of models that were unloaded.
    copies: Copies,
    /// Bytes of them, as the peer knows.
    told_copies: u64,
    send: S,
    /// Nobody is listening, or we were told to stop, or there is no device any more.
    gone: bool,
    draining: bool,
    /// When the peer last had a word from us.
    heard: Instant,
}

/// What became of a load that was tried.
enum Load {
    Loaded { seat: Box<Seat>, bytes: u64, capacity: u32 },
    NoRoom { needed_bytes: u64, room_bytes: u64 },
}

impl<S: FnMut(FromWorker) -> bool> Worker<S> {
    fn greet(&mut self) {
        self.say(FromWorker::Hello(Hello {
            build: BUILD.to_owned(),
            device: self.owned.device.clone(),
            name: self.owned.name.clone(),
            memory: (self.owned.memory)(),
        }));
    }

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
            ToWorker::Load { spec, room_bytes } => self.load(&spec, room_bytes),
            ToWorker::Unload { target } => self.unload(target, None),
            ToWorker::Admit { target, attempt, job } => self.admit(&target, attempt, job),
            ToWorker::Cancel { id } => self.cancel(&id),
            ToWorker::Drain => self.draining = true,
            ToWorker::Exit => self.gone = true,
        }
    }

    fn load(&mut self, spec: &LoadSpec, room_bytes: Option<u64>) {
        let target = spec.target.clone();
        if self.seats.contains_key(&target) {
            self.unload(target.clone(), None);
            if self.gone {
                return;
            }
        }
        let began = Instant::now();
        let tried = self.try_load(spec, room_bytes);
        self.tell_copies();
        match tried {
            Ok(Load::Loaded { seat, bytes, capacity }) => {
                // What only the loading needed.
                memory::give_back();
                self.seats.insert(target.clone(), *seat);
                let seconds = began.elapsed().as_secs_f64();
                self.say(FromWorker::Loaded { target, bytes, capacity, seconds });
            }
            Ok(Load::NoRoom { needed_bytes, room_bytes }) => {
                self.say(FromWorker::NoRoom { target, needed_bytes, room_bytes });
            }
            Err(fault) => match fault.into_error() {
                PredictError::DeviceLost(why) => self.lose_device(why),
                error => {
                    // What it had loaded before it failed is free again.
                    memory::give_back();
                    self.say(FromWorker::LoadFailed { target, error });
                }
            },
        }
    }

    /// Nothing is touched before it is known to fit.
    fn try_load(&mut self, spec: &LoadSpec, room_bytes: Option<u64>) -> Result<Load, Fault> {
        let Some(model) = self.registry.get(&spec.model).cloned() else {
            let why = format!("there is no model \"{}\" in this build", spec.model);
            return Err(Fault::Refused(PredictError::Operator(why)));
        };
        let target = spec.target.clone();
        let mut report = |line: &str| self.say(FromWorker::Loading { target: target.clone(), line: line.to_owned() });
        if let Some(room_bytes) = room_bytes {
            let needed_bytes = guarded(|| model.needs(spec, &mut report))?;
            if needed_bytes > room_bytes {
                return Ok(Load::NoRoom { needed_bytes, room_bytes });
            }
        }
        let key = Key::of(spec);
        let kept = self.copies.take(&key);
        let free_before = memory::free(&self.owned);
        let mut report = |line: &str| self.say(FromWorker::Loading { target: target.clone(), line: line.to_owned() });
        let (loaded, bytes, capacity) = guarded(|| {
            let loaded = match kept {
                Some(kept) => model.load_kept(spec, kept, &mut report)?,
                None => model.load(spec, &mut report)?,
            };
            let (bytes, capacity) = (loaded.bytes(), loaded.capacity().max(1));
            Ok((loaded, bytes, u32::try_from(capacity).unwrap_or(u32::MAX)))
        })?;
        let taken = free_before.zip(memory::free(&self.owned)).map(|(before, after)| before.saturating_sub(after));
        let bytes = bytes.max(taken.unwrap_or(0));
        Ok(Load::Loaded { seat: Box::new(Seat::new(loaded, key)), bytes, capacity })
    }

    /// Frees the model. Whoever is inside is the server's to end.
    fn unload(&mut self, target: String, why: Option<PredictError>) {
        let Some(seat) = self.seats.remove(&target) else { return };
        // One that broke is no good copy, and a worker that is to go needs none.
        let kept = match why.is_none() && seat.is_idle() && !self.draining {
            true => self.copies.keep(&seat),
            false => Ok(()),
        };
        match kept {
            Ok(()) => {}
            Err(PredictError::DeviceLost(why)) => {
                // As with the others: nothing of it can be freed.
                std::mem::forget(seat);
                return self.lose_device(why);
            }
            Err(error) => tracing::warn!(target, %error, "no copy of the model stays in host memory"),
        }
        seat.close();
        memory::give_back();
        self.say(FromWorker::Unloaded { target, why });
        self.tell_copies();
    }

    /// What copies take, where that has changed.
    fn tell_copies(&mut self) {
        let bytes = self.copies.bytes();
        if bytes != std::mem::replace(&mut self.told_copies, bytes) {
            self.say(FromWorker::HostCache { bytes });
        }
    }

    /// Nothing that this process does reaches the device any more, and what is on it cannot be freed one by one: only its
    /// end frees it.
    fn lose_device(&mut self, why: String) {
        tracing::error!(device = self.owned.device, why, "the device is lost to this process; leaving");
        self.say(FromWorker::Broken { why });
        std::mem::forget((std::mem::take(&mut self.seats), std::mem::take(&mut self.copies)));
        self.gone = true;
    }

    /// What a call into a seat emitted; a broken model is gone afterwards.
    fn after(&mut self, target: &str, result: Result<(), Broken>, out: Vec<Emitted>) {
        self.tell(out);
        match result {
            Ok(()) => {}
            Err(Broken(PredictError::DeviceLost(why))) => self.lose_device(why),
            Err(Broken(error)) => self.unload(target.to_owned(), Some(error)),
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
