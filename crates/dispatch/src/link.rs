//! The two ends of a worker as dispatch sees it. Refuses to know whether a thread or a process is behind them.

use prediction::frame::{FromWorker, ToWorker};
use tokio::sync::mpsc::UnboundedReceiver;

/// The worker cannot be spoken to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker is gone")]
pub struct Gone;

/// A running worker. Dropping this ends it, whatever it is doing: a process is killed. A thread cannot be: it stops at its
/// next step, when it finds nobody there.
pub struct Link {
    pub to: Box<dyn Fn(ToWorker) -> Result<(), Gone> + Send + Sync>,
    /// Ends when the worker does.
    pub from: UnboundedReceiver<FromWorker>,
}

/// Starts a worker for a device (`cpu` or `cuda:N`), at first and whenever the one before is gone.
pub trait Launch: Send + Sync {
    fn launch(&self, device: &str) -> std::io::Result<Link>;
}
