//! How the model's setup stands, overheard between the workers and dispatch: every line of progress, when it was ready, which
//! worker was lost. Refuses to know HTTP, and what dispatch makes of the same words.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dispatch::{Launch, Link};
use prediction::Timestamp;
use prediction::frame::FromWorker;
use tokio::sync::{mpsc, watch};

/// Workers in a row that may be lost without the model having been ready.
pub const STARTS: u32 = 3;
/// Of the setup's logs: what comes after is left out.
const LOG_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Being loaded, at first or again.
    Starting,
    Ready,
    /// It never was ready, and will not be.
    Failed,
    /// It was ready once, and will not be again.
    Defunct,
}

/// What `/health-check` says of it.
#[derive(Debug, Clone)]
pub struct Report {
    pub stage: Stage,
    pub began: Timestamp,
    pub completed: Option<Timestamp>,
    pub logs: String,
}

struct State {
    report: Report,
    was_ready: bool,
    /// Whatever the workers say from now on is too late.
    given_up: bool,
    /// Workers that were started since it was last ready.
    starts: u32,
    /// Predictions that the loaded model takes at once.
    capacity: usize,
}

pub struct Setup {
    state: Mutex<State>,
    changed: watch::Sender<Stage>,
}

impl Default for Setup {
    fn default() -> Self {
        let report = Report { stage: Stage::Starting, began: Timestamp::now(), completed: None, logs: String::new() };
        let state = State { report, was_ready: false, given_up: false, starts: 0, capacity: 0 };
        Self { state: Mutex::new(state), changed: watch::Sender::new(Stage::Starting) }
    }
}

impl Setup {
    pub fn report(&self) -> Report {
        self.state().report.clone()
    }

    pub fn stage(&self) -> Stage {
        self.state().report.stage
    }

    /// Predictions that the loaded model takes at once; 0 before it was loaded.
    pub fn capacity(&self) -> usize {
        self.state().capacity
    }

    /// One line for the logs, with or without its end.
    pub fn say(&self, line: &str) {
        self.state().say(line);
    }

    /// It cannot be loaded; the reason is for people.
    pub fn fail(&self, why: &str) {
        let mut state = self.state();
        state.say(why);
        let stage = if state.was_ready { Stage::Defunct } else { Stage::Failed };
        self.end(&mut state, stage);
    }

    /// The same for good: what still loads is not waited for.
    pub fn give_up(&self, why: &str) {
        self.state().given_up = true;
        self.fail(why);
    }

    /// When it has been ready, or will never be.
    pub async fn settled(&self) -> Stage {
        let mut changed = self.changed.subscribe();
        let stage = changed.wait_for(|stage| *stage != Stage::Starting).await;
        // The sender is ours: it cannot be gone.
        stage.map_or(Stage::Failed, |stage| *stage)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, state: &mut State, stage: Stage) {
        state.report.stage = stage;
        state.report.completed = Some(Timestamp::now());
        self.changed.send_replace(stage);
    }

    /// A worker is started: at first, or in place of one that was lost.
    fn launched(&self) {
        let mut state = self.state();
        state.starts += 1;
        let lost = state.starts - 1;
        if lost >= STARTS && state.report.stage == Stage::Starting {
            drop(state);
            self.fail(&format!("{lost} workers in a row did not live to load the model"));
        }
    }

    /// The worker, or the model in it, is gone.
    fn lost(&self, why: &str) {
        let mut state = self.state();
        if state.report.stage == Stage::Ready {
            let logs = String::new();
            state.report = Report { stage: Stage::Starting, began: Timestamp::now(), completed: None, logs };
            self.changed.send_replace(Stage::Starting);
        }
        state.say(why);
    }

    fn hear(&self, frame: &FromWorker) {
        match frame {
            FromWorker::Loading { line, .. } => self.say(line),
            FromWorker::Loaded { capacity, seconds, .. } => {
                let mut state = self.state();
                if state.given_up {
                    return;
                }
                state.say(&format!("ready after {seconds:.1} s"));
                (state.was_ready, state.starts, state.capacity) = (true, 0, *capacity as usize);
                self.end(&mut state, Stage::Ready);
            }
            FromWorker::LoadFailed { error, .. } => self.fail(error.text()),
            FromWorker::NoRoom { needed_bytes, room_bytes, .. } => {
                self.fail(&format!("the model needs {needed_bytes} bytes of memory; {room_bytes} are free for it"));
            }
            FromWorker::Unloaded { why, .. } => {
                self.lost(why.as_ref().map_or("the model was unloaded", |error| error.text()));
            }
            FromWorker::Broken { why } => self.lost(why),
            FromWorker::Hello(_)
            | FromWorker::Events(_)
            | FromWorker::HostCache { .. }
            | FromWorker::Heartbeat
            | FromWorker::Bye => {}
        }
    }
}

impl State {
    fn say(&mut self, line: &str) {
        let logs = &mut self.report.logs;
        if logs.len() + line.len() < LOG_BYTES {
            logs.push_str(line.trim_end());
            logs.push('\n');
        }
    }
}

/// Starts workers whose words the setup hears.
pub struct Overheard {
    pub launch: Arc<dyn Launch>,
    pub setup: Arc<Setup>,
}

impl Launch for Overheard {
    /// Called inside a tokio runtime.
    fn launch(&self, device: &str) -> io::Result<Link> {
        self.setup.launched();
        let Link { to, mut from } = self.launch.launch(device).inspect_err(|error| {
            self.setup.say(&format!("the worker could not be started: {error}"));
        })?;
        let (pass, out) = mpsc::unbounded_channel();
        let setup = self.setup.clone();
        tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    frame = from.recv() => frame,
                    // Dispatch ended it: what that means is said by the next start.
                    () = pass.closed() => return,
                };
                let Some(frame) = frame else {
                    return setup.lost("the worker was lost");
                };
                setup.hear(&frame);
                if pass.send(frame).is_err() {
                    return;
                }
            }
        });
        Ok(Link { to, from: out })
    }
}

#[cfg(test)]
mod tests {
    use prediction::PredictError;

    use super::*;

    fn loaded() -> FromWorker {
        FromWorker::Loaded { target: "m".into(), bytes: 1, capacity: 2, seconds: 0.25 }
    }

    #[test]
    fn progress_is_logged_and_the_end_has_a_time() {
        let setup = Setup::default();
        setup.launched();
        setup.hear(&FromWorker::Loading { target: "m".into(), line: "reading\n".into() });
        assert_eq!((setup.stage(), setup.report().completed), (Stage::Starting, None));
        setup.hear(&loaded());
        let report = setup.report();
        assert_eq!((report.stage, report.logs.as_str()), (Stage::Ready, "reading\nready after 0.2 s\n"));
        assert!(report.completed >= Some(report.began));
        assert_eq!(setup.capacity(), 2);
    }

    #[test]
    fn a_model_that_cannot_be_loaded_has_failed_and_one_that_could_once_is_defunct() {
        let fails = || FromWorker::LoadFailed { target: "m".into(), error: PredictError::Operator("torn".into()) };
        let setup = Setup::default();
        setup.launched();
        setup.hear(&fails());
        assert_eq!((setup.stage(), setup.report().logs.as_str()), (Stage::Failed, "torn\n"));
        let setup = Setup::default();
        setup.launched();
        setup.hear(&loaded());
        setup.lost("gone");
        assert_eq!((setup.stage(), setup.report().logs.as_str()), (Stage::Starting, "gone\n"));
        setup.hear(&fails());
        assert_eq!(setup.stage(), Stage::Defunct);
    }

    #[test]
    fn three_lost_starts_in_a_row_are_enough_and_a_good_one_between_forgives() {
        for (was_ready, end) in [(false, Stage::Failed), (true, Stage::Defunct)] {
            let setup = Setup::default();
            setup.launched();
            if was_ready {
                setup.hear(&loaded());
                setup.lost("gone");
                setup.launched();
            }
            for _ in 0..2 {
                setup.lost("gone");
                setup.launched();
                assert_eq!(setup.stage(), Stage::Starting);
            }
            setup.lost("gone");
            setup.launched();
            assert_eq!(setup.stage(), end);
        }
        let setup = Setup::default();
        for _ in 0..9 {
            setup.launched();
            setup.launched();
            setup.hear(&loaded());
            setup.lost("gone");
        }
        assert_eq!(setup.stage(), Stage::Starting);
    }

    #[test]
    fn logs_have_an_end() {
        let setup = Setup::default();
        (0..2000).for_each(|_| setup.say(&"x".repeat(100)));
        assert!(setup.report().logs.len() <= LOG_BYTES);
    }
}
