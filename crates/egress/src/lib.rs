//! The only way out. Address rules and limits live here.
