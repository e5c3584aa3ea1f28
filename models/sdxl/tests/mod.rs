//! What no single file of this folder can promise: equality with the reference, and weights from wherever they lie.

mod files;
mod nets;
