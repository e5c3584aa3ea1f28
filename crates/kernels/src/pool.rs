//! The threads that share one op's work. Knows units of work by number; refuses to know what they are.

/// A caller and `threads - 1` workers.
pub struct Pool {
    threads: usize,
}

impl Pool {
    pub fn new(threads: usize) -> Pool {
        Pool { threads: threads.max(1) }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }
}
