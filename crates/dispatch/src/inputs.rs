//! Inputs that must be brought here before a model can have them: files that a prediction names. It waits outside of the
//! queue meanwhile, so nobody waits for somebody else's download. Refuses to know how they are brought.

use std::any::Any;

use async_trait::async_trait;
use prediction::{Id, Map, Outcome};
use tokio::task::AbortHandle;

use crate::core::{Core, Said};
use crate::live::Stage;

/// Whose input is to be prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub id: Id,
    pub target: String,
    /// Scheme and host that its caller used.
    pub origin: String,
    pub input: Map,
}

/// The input as the model gets it.
pub struct Prepared {
    pub input: Map,
    /// Dropped when the prediction has ended: whatever must live as long as it runs.
    pub keep: Box<dyn Any + Send>,
}

/// Takes a line for the prediction's logs, with its line end.
pub type Say = Box<dyn Fn(String) + Send + Sync>;

/// Brings inputs here.
#[async_trait]
pub trait Inputs: Send + Sync {
    /// Whether there is anything to do; what needs nothing goes on at once.
    fn concerns(&self, target: &str, input: &Map) -> bool;

    /// The error is the prediction's. Dropping the future stops it, and nothing of it stays.
    async fn prepare(&self, asked: Asked, say: Say) -> Result<Prepared, String>;
}

/// Gives the model what the caller sent.
pub struct AsSent;

#[async_trait]
impl Inputs for AsSent {
    fn concerns(&self, _: &str, _: &Map) -> bool {
        false
    }

    async fn prepare(&self, asked: Asked, _: Say) -> Result<Prepared, String> {
        Ok(Prepared { input: asked.input, keep: Box::new(()) })
    }
}

/// Where a live prediction stands with its inputs.
pub enum Brought {
    NotYet,
    /// Dropping it stops the work.
    OnTheWay {
        _task: Stop,
    },
    Here {
        _keep: Box<dyn Any + Send>,
    },
}

pub struct Stop(AbortHandle);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Core {
    /// Begins to bring its inputs here if that is to be done; it comes back through `prepared`.
    pub fn prepares(&mut self, id: &Id) -> bool {
        let Some(live) = self.live.get_mut(id) else { return false };
        if !matches!(live.brought, Brought::NotYet) || !self.inputs.concerns(&live.target, &live.input) {
            return false;
        }
        let (target, origin) = (live.target.clone(), live.origin.clone());
        let asked = Asked { id: id.clone(), target, origin, input: live.input.clone() };
        let (inputs, reports, id) = (self.inputs.clone(), self.reports.clone(), id.clone());
        let task = tokio::spawn(async move {
            let (lines, of) = (reports.clone(), id.clone());
            let say = move |line| {
                if let Some(lines) = lines.upgrade() {
                    let _ = lines.send(Said::Progress(of.clone(), line));
                }
            };
            let result = inputs.prepare(asked, Box::new(say)).await;
            if let Some(reports) = reports.upgrade() {
                let _ = reports.send(Said::Prepared(id, result));
            }
        });
        live.brought = Brought::OnTheWay { _task: Stop(task.abort_handle()) };
        true
    }

    pub fn prepared(&mut self, id: &Id, result: Result<Prepared, String>) {
        let Some(live) = self.live.get_mut(id) else { return };
        // It may have ended while this was said.
        if live.stage != Stage::Waiting || !matches!(live.brought, Brought::OnTheWay { .. }) {
            return;
        }
        match result {
            Ok(Prepared { input, keep }) => {
                live.input = input;
                live.brought = Brought::Here { _keep: keep };
                self.queue_up(id);
            }
            Err(error) => self.finish(id, Outcome::Failed { error }),
        }
    }
}
