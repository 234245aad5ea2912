//! Who computes: one thread, those of a pool, or a team of them that waits awake.

use rayon::ThreadPool;
use rayon::prelude::*;
use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How often is looked for work before others may have the core: some 20 us, as long as a pass computes on one thread at a time.
const LOOKS: usize = 500;
/// How long threads wait for the next text, in microseconds: queries that follow one another find them awake.
const STAY: u64 = 200;
/// The fewest rows that are worth a piece of their own.
const LEAST_ROWS: usize = 8;

/// Who computes.
#[derive(Clone, Copy)]
pub(crate) enum Threads<'a> {
    /// The caller's thread alone: the caller runs several products side by side.
    One,
    /// All of the current rayon pool.
    All,
    /// The caller's thread and those that wait for it.
    Team(&'a Pass<'a>),
}

impl Threads<'_> {
    /// How many there are.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::All => rayon::current_num_threads(),
            Self::Team(pass) => pass.team.threads,
        }
    }

    /// How many pieces equal work is cut into: those who wait begin together, others come late.
    pub(crate) fn pieces(self) -> usize {
        match self {
            Self::All => 2 * self.count(),
            _ => self.count(),
        }
    }

    /// Calls `each` with every number below `pieces`, in any order, and returns when all calls have.
    pub(crate) fn share(self, pieces: usize, each: impl Fn(usize) + Sync) {
        match self {
            Self::Team(pass) if pieces > 1 => pass.share(pieces, &each),
            Self::All => (0..pieces).into_par_iter().for_each(&each),
            _ => (0..pieces).for_each(each),
        }
    }

    /// Calls `each` with some rows after others of `all`, `width` elements each: the number of the first, and the rows.
    pub(crate) fn share_rows<T: Send>(self, all: &mut [T], width: usize, each: impl Fn(usize, &mut [T]) + Sync) {
        let rows = all.len() / width;
        assert!(all.len() == rows * width, "whole rows; this is a bug");
        let most = rows.div_ceil(self.pieces()).max(LEAST_ROWS);
        let all = AtomicPtr::new(all.as_mut_ptr());
        self.share(rows.div_ceil(most), |i| {
            let (first, count) = (i * most, most.min(rows - i * most));
            // SAFETY: they lie in `all`, of which no two calls have a row in common.
            #[allow(unsafe_code)]
            let rows = unsafe {
                let first = all.load(Ordering::Relaxed).add(first * width);
                std::slice::from_raw_parts_mut(first, count * width)
            };
            each(first, rows);
        });
    }
}

/// Threads of a pool that wait awake for what another thread shares with them: through a short text, some thirty times a
/// millisecond, and waking them up each time would take as long as what they do.
///
/// Who waits does nothing else, so a team is for passes of a few milliseconds. A thread that is busy elsewhere comes when it can;
/// nothing waits for it.
pub(crate) struct Team {
    pool: Arc<ThreadPool>,
    threads: usize,
    shared: Arc<Shared>,
}

/// A text on its way through a model. The others of the team come to it if there is no other one.
pub(crate) struct Pass<'a> {
    team: &'a Team,
    alone: bool,
    /// Work is shared by one thread, and within no other work: pieces cannot have it.
    here: PhantomData<*const ()>,
}

/// What the threads of a team have in common.
struct Shared {
    /// How many pieces nobody has begun.
    waiting: Line<AtomicUsize>,
    /// How many are not done.
    open: Line<AtomicUsize>,
    /// Is written while no piece is open, and read by those that have taken one.
    work: UnsafeCell<Option<Work>>,
    /// What a piece panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// How many passes there are.
    passes: AtomicUsize,
    /// Whether one of them shares its work.
    led: AtomicBool,
    /// How many threads wait, or are to come.
    helpers: AtomicUsize,
    /// When there was last something to wait for, in microseconds from `begun` on.
    last: AtomicU64,
    begun: Instant,
}

/// A line of the cache, or two, as they are fetched in pairs: who writes to one does not slow those who read another.
#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Work {
    each: *const (dyn Fn(usize) + Sync),
    pieces: usize,
}

// SAFETY: `work` is written by the one thread that leads, before it says how many pieces wait; it is read by those that have
// taken a piece, which the writer waits for before it goes on.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}
// SAFETY: as above; what it points to may be called from any thread.
#[allow(unsafe_code)]
unsafe impl Send for Shared {}

impl Team {
    /// Returns a team of up to `most` threads, all but the leading one of `pool`.
    pub(crate) fn new(pool: Arc<ThreadPool>, most: usize) -> Self {
        let shared = Shared {
            waiting: Line(AtomicUsize::new(0)),
            open: Line(AtomicUsize::new(0)),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            passes: AtomicUsize::new(0),
            led: AtomicBool::new(false),
            helpers: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            begun: Instant::now(),
        };
        let threads = pool.current_num_threads().min(most).max(1);
        Self { pool, threads, shared: Arc::new(shared) }
    }

    /// Returns the pool that all but the leading thread are of.
    pub(crate) fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Asks the threads that do not wait yet to come: there is about to be a pass.
    pub(crate) fn wake(&self) {
        if self.shared.passes.load(Ordering::Relaxed) > 0 {
            return;
        }
        self.call();
    }

    fn call(&self) {
        self.shared.touch();
        while self.shared.helpers.load(Ordering::Relaxed) + 1 < self.threads {
            self.shared.helpers.fetch_add(1, Ordering::Relaxed);
            let shared = Arc::clone(&self.shared);
            self.pool.spawn(move || shared.help());
        }
    }

    /// Begins a pass, which ends where it is dropped.
    pub(crate) fn pass(&self) -> Pass<'_> {
        // Whoever leads has ended before there is none.
        let alone = self.shared.passes.fetch_add(1, Ordering::Acquire) == 0;
        Pass { team: self, alone, here: PhantomData }
    }
}

impl Pass<'_> {
    /// Returns who computes it: as many as there are if it is the only one, and otherwise the caller.
    pub(crate) fn threads(&self) -> Threads<'_> {
        if !self.alone || self.team.threads == 1 {
            return Threads::One;
        }
        if !self.team.shared.led.swap(true, Ordering::Relaxed) {
            self.team.call();
        }
        Threads::Team(self)
    }

    fn share(&self, pieces: usize, each: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.team.shared;
        // SAFETY: nobody reads it, as no piece waits or is open. What it points to outlives this call, which returns when
        // every piece is done.
        #[allow(unsafe_code)]
        unsafe {
            let each = std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(each);
            *shared.work.get() = Some(Work { each, pieces });
        }
        shared.open.0.store(pieces, Ordering::Relaxed);
        shared.waiting.0.store(pieces, Ordering::Release);
        while shared.piece() {}
        wait(|| shared.open.0.load(Ordering::Acquire) == 0);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let shared = &*self.team.shared;
        if self.alone {
            shared.touch();
            shared.led.store(false, Ordering::Relaxed);
        }
        shared.passes.fetch_sub(1, Ordering::Release);
    }
}

impl Shared {
    /// Computes pieces, until for some time there was no pass, or there are some that do not share.
    fn help(&self) {
        loop {
            wait(|| self.waiting.0.load(Ordering::Relaxed) > 0 || !self.led.load(Ordering::Relaxed));
            if !self.piece() && !self.led.load(Ordering::Relaxed) {
                let now = self.begun.elapsed().as_micros() as u64;
                let late = now.saturating_sub(self.last.load(Ordering::Relaxed)) > STAY;
                // One may be about to share.
                if late || self.passes.load(Ordering::Relaxed) > 1 {
                    break;
                }
                std::thread::yield_now();
            }
        }
        self.helpers.fetch_sub(1, Ordering::Relaxed);
    }

    /// There is something to wait for.
    fn touch(&self) {
        self.last.store(self.begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Computes a piece, if one waits.
    fn piece(&self) -> bool {
        let take = |waiting: usize| waiting.checked_sub(1);
        let Ok(waiting) = self.waiting.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, take) else { return false };
        // SAFETY: it was written before the piece could be taken, and stays until the piece is done.
        #[allow(unsafe_code)]
        let done = unsafe {
            let Work { each, pieces } = (*self.work.get()).expect("there is work where pieces wait; this is a bug");
            catch_unwind(AssertUnwindSafe(|| (*each)(pieces - waiting)))
        };
        if let Err(panic) = done {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        self.open.0.fetch_sub(1, Ordering::Release);
        true
    }
}

/// Returns when `ready` says so.
fn wait(ready: impl Fn() -> bool) {
    let mut looks = 0;
    while !ready() {
        looks += 1;
        if looks < LOOKS {
            std::hint::spin_loop();
        } else {
            // Who has what is waited for may need this core.
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn pool(threads: usize) -> Arc<ThreadPool> {
        Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start"))
    }

    /// How often each piece was computed.
    fn counts(threads: Threads<'_>, pieces: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
        threads.share(pieces, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_piece_is_computed_once() {
        for threads in 1..5 {
            let team = Team::new(pool(threads), threads);
            for round in 0..200 {
                let pass = team.pass();
                for pieces in [0, 1, 2, 3, 17, 100] {
                    assert_eq!(counts(pass.threads(), pieces), vec![1; pieces]);
                    assert_eq!(counts(Threads::One, pieces), vec![1; pieces]);
                    assert_eq!(team.pool.install(|| counts(Threads::All, pieces)), vec![1; pieces]);
                }
                drop(pass);
                if round % 50 == 0 {
                    // Long enough for the others to leave.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    #[test]
    fn every_row_is_given_once() {
        let team = Team::new(pool(3), 3);
        let pass = team.pass();
        for (rows, width) in [(0, 3), (1, 3), (4, 1), (5, 2), (23, 7), (100, 1)] {
            for threads in [pass.threads(), Threads::All, Threads::One] {
                let mut all = vec![0; rows * width];
                threads.share_rows(&mut all, width, |first, rows| {
                    rows.iter_mut().enumerate().for_each(|(i, x)| *x += first * width + i + 1);
                });
                assert_eq!(all, (1..=rows * width).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn threads_that_never_come_are_not_waited_for() {
        let team = Team::new(pool(2), 2);
        let held = Arc::new(AtomicBool::new(true));
        for _ in 0..2 {
            let held = Arc::clone(&held);
            team.pool.spawn(move || wait(|| !held.load(Ordering::Relaxed)));
        }
        for _ in 0..100 {
            let pass = team.pass();
            assert_eq!(counts(pass.threads(), 10), [1; 10]);
        }
        assert_eq!(team.shared.helpers.load(Ordering::Relaxed), 1, "one is asked to come, once");
        held.store(false, Ordering::Relaxed);
    }

    #[test]
    fn others_help_and_leave() {
        let team = Team::new(pool(2), 2);
        for _ in 0..3 {
            let pass = team.pass();
            let met = AtomicUsize::new(0);
            // Each piece returns when the other has begun.
            pass.threads().share(2, |_| {
                met.fetch_add(1, Ordering::Relaxed);
                wait(|| met.load(Ordering::Relaxed) == 2);
            });
            drop(pass);
            wait(|| team.shared.helpers.load(Ordering::Relaxed) == 0);
        }
    }

    #[test]
    fn passes_beside_each_other_are_computed_by_their_own_threads() {
        let team = Team::new(pool(2), 2);
        let first = team.pass();
        assert_eq!(first.threads().count(), 2);
        let second = team.pass();
        assert_eq!(second.threads().count(), 1);
        drop(first);
        assert_eq!(team.pass().threads().count(), 1);
        drop(second);
        assert_eq!(team.pass().threads().count(), 2);
    }

    #[test]
    fn a_panic_reaches_who_shares_and_the_team_goes_on() {
        let team = Team::new(pool(3), 3);
        let pass = team.pass();
        for _ in 0..50 {
            let shared = catch_unwind(AssertUnwindSafe(|| {
                pass.threads().share(20, |i| assert!(i != 7, "piece {i}"));
            }));
            let panic = shared.expect_err("a piece panics");
            assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("piece 7"));
            assert_eq!(counts(pass.threads(), 5), [1; 5]);
        }
    }
}
