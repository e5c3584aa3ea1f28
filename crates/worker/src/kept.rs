//! What unloaded models left in the host's memory: of all that fits a budget, the least recently unloaded leaves first. One is taken
//! for the next load of the same weights and is gone then. Knows no frames; what is in a copy only its model knows.

use prediction::{Kept, LoadSpec, PredictError, Weights};

use crate::seat::Seat;

/// What a copy is good for: loads of these. Whether the bytes are still those, the model looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    model: String,
    weights: Weights,
    device: String,
    precision: Option<String>,
}

impl Key {
    pub fn of(spec: &LoadSpec) -> Self {
        let LoadSpec { model, weights, device, precision, .. } = spec.clone();
        Self { model, weights, device, precision }
    }
}

#[derive(Default)]
pub struct Copies {
    budget_bytes: u64,
    /// The oldest first.
    all: Vec<(Key, Box<dyn Kept>)>,
}

impl Copies {
    pub fn within(budget_bytes: u64) -> Self {
        Self { budget_bytes, all: Vec::new() }
    }

    pub fn bytes(&self) -> u64 {
        self.all.iter().map(|(_, kept)| kept.bytes()).sum()
    }

    /// Copies an idle model that is to be closed, if the budget has room once others have left. One that would never fit costs
    /// nobody else his place. Once the host had no memory for a copy no more are made: others would leave for nothing each time.
    pub fn keep(&mut self, seat: &Seat) -> Result<(), PredictError> {
        let bytes = seat.kept_bytes()?;
        if bytes == 0 || bytes > self.budget_bytes {
            return Ok(());
        }
        // Of two models of one key, the last one counts.
        drop(self.take(seat.key()));
        while self.bytes() + bytes > self.budget_bytes {
            self.all.remove(0);
        }
        let kept = seat.keep().inspect_err(|error| {
            if matches!(error, PredictError::OutOfMemory(_)) {
                self.budget_bytes = 0;
            }
        })?;
        self.all.extend(kept.map(|kept| (seat.key().clone(), kept)));
        Ok(())
    }

    /// What there is for a load like this.
    pub fn take(&mut self, key: &Key) -> Option<Box<dyn Kept>> {
        let place = self.all.iter().position(|(own, _)| own == key)?;
        Some(self.all.remove(place).1)
    }
}
