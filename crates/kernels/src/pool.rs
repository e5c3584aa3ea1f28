//! The threads that share one op's work: the caller and its workers. Knows units of work by number; refuses to know what
//! they are.
//!
//! A job is a closure and a count of units, which whoever is free claims one by one. The caller claims too and waits only
//! for workers that have joined: one that sleeps, or that the operating system runs late, is not waited for. Workers spin
//! for a short while after a job, because in a forward pass the next one is microseconds away, then they park. A job
//! allocates nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::simd::Simd;

/// How long a worker spins for the next job before it parks: longer than the gap between two ops of a forward pass,
/// shorter than anybody minds a busy core.
const SPIN: Duration = Duration::from_micros(100);

/// Spins between two looks at the clock, and before the first time slice is given away.
const SPINS_PER_LOOK: u32 = 64;

/// In `state`: a job may be joined. Below it the workers that have joined, above it the job's number.
const OPEN: u64 = 1 << 16;
const JOINED: u64 = OPEN - 1;
const NEXT_JOB: u64 = OPEN << 1;

/// Every pool of this process, for [`progress`].
static POOLS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// Units of long work that no pool does.
static ELSEWHERE: AtomicU64 = AtomicU64::new(0);

type Work<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    state: AtomicU64,
    /// Valid while workers are joined to the job that is open, or was last.
    work: UnsafeCell<Option<Work<'static>>>,
    units: AtomicUsize,
    next: AtomicUsize,
    left: AtomicU64,
    /// Units of jobs that nobody else could have joined.
    alone: AtomicU64,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `work` is written only by the one caller that holds `turn`, while no worker is joined; workers read it only
// after joining, which the open `state` orders after the write.
unsafe impl Sync for Shared {}
// SAFETY: as above; the closure itself is Sync.
unsafe impl Send for Shared {}

struct Worker {
    thread: Thread,
    sleeps: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// One job at a time; a second caller waits.
    turn: Mutex<()>,
    simd: Simd,
}

impl Pool {
    /// A pool of `threads` (at least 1), the caller included, on the best path this processor has.
    pub fn new(threads: usize) -> Pool {
        Pool::with_simd(threads, Simd::best())
    }

    pub fn with_simd(threads: usize, simd: Simd) -> Pool {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            units: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            left: AtomicU64::new(0),
            alone: AtomicU64::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&shared));
        drop(pools);
        let workers = (1..threads)
            .map_while(|n| {
                let (shared, sleeps) = (shared.clone(), Arc::new(AtomicBool::new(false)));
                let flag = sleeps.clone();
                let thread = std::thread::Builder::new().name(format!("kernel {n}"));
                // A machine that gives fewer threads gets a smaller pool.
                let handle = thread.spawn(move || shared.serve(&flag)).ok()?;
                Some(Worker { thread: handle.thread().clone(), sleeps, handle: Some(handle) })
            })
            .collect();
        Pool { shared, workers, turn: Mutex::new(()), simd }
    }

    /// The threads that work, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// Calls `work` once for every number below `units`, on all threads, and returns when all calls have. A panic in a
    /// call is passed on. Must not be called from within `work`.
    pub fn run(&self, units: usize, work: impl Fn(usize) + Sync) {
        if units <= 1 || self.workers.is_empty() {
            for unit in 0..units {
                self.shared.alone.fetch_add(1, Ordering::Relaxed);
                work(unit);
            }
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let job = Job::open(self, &work, units, turn);
        let caught = catch_unwind(AssertUnwindSafe(|| self.shared.claim(&work)));
        if caught.is_err() {
            self.shared.next.store(units, Ordering::Relaxed);
        }
        drop(job);
        let worker = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = caught.err().or(worker) {
            resume_unwind(panic);
        }
    }

    /// Cuts `out` into chunks of `len` and calls `work` with the number of each and the chunk itself.
    pub fn chunks<T: Send>(&self, out: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let (all, len) = (out.len(), len.max(1));
        let out = Shares::new(out);
        self.run(all.div_ceil(len), |unit| {
            let first = unit * len;
            // SAFETY: every unit is claimed once, and the chunks of two units do not meet.
            work(unit, unsafe { out.share(first, len.min(all - first)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

/// A job that may be joined. Dropping it closes it and waits for those who did join.
struct Job<'a> {
    shared: &'a Shared,
    _turn: MutexGuard<'a, ()>,
}

impl<'a> Job<'a> {
    fn open(pool: &'a Pool, work: Work<'_>, units: usize, turn: MutexGuard<'a, ()>) -> Job<'a> {
        let shared = &*pool.shared;
        // SAFETY: the closure outlives the job, since `run` drops the job before it returns, and no worker touches it
        // after that. No worker is joined now, so nobody reads `work` meanwhile.
        unsafe { *shared.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work)) };
        shared.units.store(units, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        shared.left.store(0, Ordering::Relaxed);
        let before = shared.state.load(Ordering::Relaxed);
        shared.state.store((before & !(OPEN | JOINED)).wrapping_add(NEXT_JOB) | OPEN, Ordering::SeqCst);
        for worker in pool.workers.iter().take(units - 1) {
            if worker.sleeps.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        Job { shared, _turn: turn }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let joined = self.shared.state.fetch_and(!OPEN, Ordering::AcqRel) & JOINED;
        let mut spins = 0u32;
        while self.shared.left.load(Ordering::Acquire) != joined {
            spins += 1;
            if spins.is_multiple_of(SPINS_PER_LOOK * 16) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

/// A number that changes from unit to unit while any pool of this process works, or whoever calls `advance`, and stands still
/// otherwise: it tells an op that is long from one that hangs. It costs an atomic addition for each unit of a job that runs
/// alone, and nothing else until it is asked for.
pub fn progress() -> u64 {
    let pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let all = pools.iter().filter_map(Weak::upgrade).map(|pool| pool.progress());
    all.fold(elsewhere(), u64::wrapping_add)
}

/// What [`advance`] has counted.
pub(crate) fn elsewhere() -> u64 {
    ELSEWHERE.load(Ordering::Relaxed)
}

/// Long work outside of any pool has done a unit: [`progress`] changes.
pub fn advance() {
    ELSEWHERE.fetch_add(1, Ordering::Relaxed);
}

impl Shared {
    /// Jobs and, within one, units.
    fn progress(&self) -> u64 {
        let job = self.state.load(Ordering::Relaxed) / NEXT_JOB;
        let units = self.next.load(Ordering::Relaxed) as u64;
        // More than any job has units, so that the next job's first unit is not the last one's last.
        job.wrapping_mul(1 << 40).wrapping_add(units).wrapping_add(self.alone.load(Ordering::Relaxed))
    }

    fn claim(&self, work: Work<'_>) {
        let units = self.units.load(Ordering::Relaxed);
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            work(unit);
        }
    }

    /// A worker's life.
    fn serve(&self, sleeps: &AtomicBool) {
        let mut done = 0;
        while self.wait(done, sleeps) {
            let seen = self.state.load(Ordering::Acquire);
            if seen & OPEN == 0 || seen / NEXT_JOB == done {
                continue;
            }
            if self.state.compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            done = seen / NEXT_JOB;
            // SAFETY: joined, so the caller keeps the closure until `left` counts us.
            let work = unsafe { (*self.work.get()).expect("an open job has work") };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.claim(work))) {
                self.next.store(self.units.load(Ordering::Relaxed), Ordering::Relaxed);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            self.left.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits for an open job other than `done`; false once the pool is dropped.
    fn wait(&self, done: u64, sleeps: &AtomicBool) -> bool {
        let mut since = None;
        let mut spins = 0u32;
        loop {
            let ready = |order| {
                let state = self.state.load(order);
                state & OPEN != 0 && state / NEXT_JOB != done
            };
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if ready(Ordering::Acquire) {
                return true;
            }
            spins += 1;
            if !spins.is_multiple_of(SPINS_PER_LOOK) || since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            sleeps.store(true, Ordering::SeqCst);
            // The caller stores the job, then looks at `sleeps`; this thread does the reverse: one of the two sees.
            if !ready(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            sleeps.store(false, Ordering::SeqCst);
            since = None;
        }
    }
}

/// A slice whose disjoint parts are written by several threads.
pub(crate) struct Shares<'a, T> {
    first: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the parts are handed out under the promise of `share`, and T may move between threads.
unsafe impl<T: Send> Sync for Shares<'_, T> {}

impl<'a, T> Shares<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shares { first: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// Where `at` lies: for kernels that write places of their own by pointer.
    pub(crate) fn pointer(&self, at: usize) -> *mut T {
        assert!(at < self.len);
        self.first.wrapping_add(at)
    }

    /// # Safety
    /// No two shares that live at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn share(&self, first: usize, len: usize) -> &mut [T] {
        assert!(first <= self.len && len <= self.len - first);
        // SAFETY: in bounds, and alone by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(first), len) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn every_unit_is_called_once_whatever_the_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for units in (0..200).chain([10_000]) {
                let calls: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                pool.run(units, |unit| {
                    calls[unit].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {units} units");
            }
        }
    }

    #[test]
    fn a_thousand_jobs_in_a_row_see_each_others_results() {
        let pool = Pool::new(2);
        let mut values = vec![0u64; 1000];
        for _ in 0..1000 {
            pool.chunks(&mut values, 7, |_, chunk| chunk.iter_mut().for_each(|v| *v += 1));
        }
        assert!(values.iter().all(|v| *v == 1000));
    }

    #[test]
    fn progress_changes_from_unit_to_unit_and_from_job_to_job() {
        let pool = Pool::new(2);
        let (go, word) = channel();
        let (entered, at) = channel();
        let word = Mutex::new(word);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pool.run(3, |unit| {
                    entered.send(unit).unwrap();
                    word.lock().unwrap().recv().unwrap();
                })
            });
            // Both threads are inside of a unit, and the third one is nobody's yet.
            [at.recv().unwrap(), at.recv().unwrap()].iter().for_each(|unit| assert!(*unit < 2));
            let before = pool.shared.progress();
            assert_eq!(pool.shared.progress(), before);
            go.send(()).unwrap();
            assert_eq!(at.recv(), Ok(2));
            assert_ne!(pool.shared.progress(), before);
            [(), ()].into_iter().for_each(|()| go.send(()).unwrap());
        });
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            for units in [1, 3, 3] {
                let before = pool.shared.progress();
                pool.run(units, |_| ());
                assert_ne!(pool.shared.progress(), before, "{threads} threads, {units} units");
            }
            // What others do at the same time is in the sum too: that this one is.
            assert!(POOLS.lock().unwrap().iter().any(|known| known.as_ptr() == Arc::as_ptr(&pool.shared)));
        }
    }

    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..100).for_each(|_| {
                        pool.run(10, |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        })
                    });
                });
            }
        });
        assert_eq!(total.into_inner(), 4000);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_works_on() {
        let pool = Pool::new(2);
        for bad in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(20, |unit| assert!(unit != bad, "unit {bad}"))));
            let panic = caught.expect_err("a unit panicked");
            assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some(&*format!("unit {bad}")));
        }
        let calls = AtomicUsize::new(0);
        pool.run(20, |_| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 20);
    }
}
