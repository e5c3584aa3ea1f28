//! The program. Words in, exit code out; each word's work is in the file of its name.

fn main() {}
