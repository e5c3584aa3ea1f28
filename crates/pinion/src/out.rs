//! Words on stdout. A reader that has had enough is no defect of ours, and no panic.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use crate::failure::Failure;

/// `println!` for a function that may fail.
macro_rules! print_line {
    ($($words:tt)*) => {
        $crate::out::line(format_args!($($words)*))?
    };
}
pub(crate) use print_line;

pub fn line(text: impl Display) -> Result<(), Failure> {
    piece(format_args!("{text}\n"))
}

/// As it is, and at once.
pub fn piece(text: impl Display) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::Failed(format!("stdout: {error}")),
    })
}
