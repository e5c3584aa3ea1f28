//! Why the program stops, and with which exit code.

use std::fmt;
use std::process::ExitCode;

use prediction::PredictError;

#[derive(Debug)]
pub enum Failure {
    /// The words or the input: exit code 2, as for a word that the parser refuses.
    BadInput(String),
    /// Anything else: exit code 1.
    Failed(String),
    /// Ctrl-C: exit code 130, as shells have it.
    Interrupted,
    /// Nobody reads stdout any more: exit code 141, as shells have it, and not a word.
    ReaderGone,
}

impl Failure {
    pub fn failed(why: impl fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::BadInput(_) => 2,
            Self::Interrupted => 130,
            Self::ReaderGone => 141,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadInput(why) | Self::Failed(why) => f.write_str(why),
            Self::Interrupted => f.write_str("interrupted"),
            Self::ReaderGone => f.write_str("nobody reads what this prints"),
        }
    }
}

impl From<PredictError> for Failure {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::FixInput(why) => Self::BadInput(why),
            PredictError::RetryLater(why)
            | PredictError::Operator(why)
            | PredictError::OutOfMemory(why)
            | PredictError::DeviceLost(why) => Self::Failed(why),
        }
    }
}
