//! What a model runs on: the device, and weights that are pinned, fetched, verified and opened by name.
//!
//! Refuses to know models, predictions' inputs and the HTTP APIs. A file is believed only as far as it was checked.

pub mod archive;
pub mod ct2;
pub mod device;
pub mod gguf;
mod map;
mod origin;
pub mod safetensors;
pub mod synth;
pub mod weights;

pub use ct2::Ct2;
pub use gguf::{GgmlType, Gguf, GgufTensor};
pub use origin::Origin;
pub use safetensors::SafeTensors;
