//! Under what a prediction ran: enough to run it again to the same output. Never shown to callers; kept when the retention
//! sweep has removed what was said, since it says nothing of that.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The version's digest, whatever alias the caller wrote; none where nobody pinned anything.
    pub version: Option<String>,
    /// What names the weights' bytes.
    pub weights: Option<String>,
    /// The program's own version.
    pub program: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// What the device is called.
    pub device_name: String,
    /// As set; none: what the model takes for this device and these weights, which the two above decide.
    pub precision: Option<String>,
    /// Used where the input names none.
    pub seed: u64,
}
