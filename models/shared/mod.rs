//! What more than one model already uses. Refuses to know any of them.

pub mod raw;
