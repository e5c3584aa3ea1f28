//! What more than one model already uses. Refuses to know any of them.

pub mod kept;
pub mod raw;
pub mod shelf;
#[cfg(test)]
pub mod spoilt;
