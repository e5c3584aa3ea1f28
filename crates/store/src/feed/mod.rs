//! The live tail.
use std::sync::Arc;

use prediction::{Id, Numbered, Prediction, Request, Transition};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::{Store, StoreError};

#[derive(Clone)]
pub struct Feed;

pub struct Reader;

impl Feed {
    pub fn new(_: Arc<dyn Store>) -> Self { todo!() }

    /// The prediction is live here from now on, as it stands in the store.
    pub fn open(&self, _: Prediction) { todo!() }

    /// Dispatch only. An `Ended` must be in the store before it is published.
    pub fn publish(&self, _: &Id, _: Numbered) -> Transition { todo!() }

    /// It is live elsewhere now (the lease was lost): readers go on from the store.
    pub fn forget(&self, _: &Id) { todo!() }

    /// As it stands: the live state, else the store's.
    pub async fn snapshot(&self, _: &Id) -> Result<Option<Prediction>, StoreError> { todo!() }

    /// Every event above `after`, then what comes, until it ends. None if there is no such prediction.
    pub async fn follow(&self, _: &Id, _: u64) -> Result<Option<Reader>, StoreError> { todo!() }

    /// What goes live after this call.
    pub fn opened(&self) -> UnboundedReceiver<Request> { todo!() }
}

impl Reader {
    /// The next event, none after the last. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Numbered> { todo!() }
}
