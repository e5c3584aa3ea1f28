//! What a model's panic turns into. Knows nothing of frames.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prediction::PredictError;

/// Calls into a model. After an error that came from a panic the model is in an unknown state: the caller drops it.
pub fn guarded<T>(call: impl FnOnce() -> Result<T, PredictError>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::Refused(error)),
        Err(payload) => Err(Fault::Panicked(format!("the model panicked: {}", said(payload.as_ref())))),
    }
}

pub enum Fault {
    Refused(PredictError),
    Panicked(String),
}

impl Fault {
    /// At an admission: whether it is the model's and not the input's. One that panicked is in an unknown state, and one
    /// without memory or device can do nothing for anybody.
    pub fn breaks_the_model(&self) -> bool {
        match self {
            Self::Panicked(_) => true,
            Self::Refused(error) => matches!(error, PredictError::OutOfMemory(_) | PredictError::DeviceLost(_)),
        }
    }

    pub fn into_error(self) -> PredictError {
        match self {
            Self::Refused(error) => error,
            Self::Panicked(why) => PredictError::Operator(why),
        }
    }
}

fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
