//! The one gate between Python and Rust: the GIL is released, Ctrl-C is heard, panics and forks become errors.

use crate::error::{AdventuresError, PyError};
use pyo3::prelude::*;
use rayon::ThreadPool;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// How long Ctrl-C may wait to be seen.
pub(crate) const SIGNAL_PERIOD: Duration = Duration::from_millis(50);

/// Runs `f` without the GIL on a thread of its own, while this one looks for signals.
///
/// A signal whose handler raises, as Ctrl-C's does, sets the flag that `f` is given; its exception is returned once `f` is back.
pub(crate) fn run<T: Send>(py: Python<'_>, f: impl FnOnce(&AtomicBool) -> adventures::Result<T> + Send) -> PyResult<T> {
    let cancel = AtomicBool::new(false);
    py.detach(|| {
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let cancel = &cancel;
            scope.spawn(move || {
                // The receiver waits for this message and for nothing else, so it is there.
                let _ = sender.send(guard(|| f(cancel)));
            });
            wait(&receiver, cancel)
        })
    })
}

/// [`run`] on a thread of `pool`, where `f` computes anyway: of a short text, starting a thread takes a tenth of the time.
pub(crate) fn run_on<T: Send>(
    py: Python<'_>,
    pool: &ThreadPool,
    f: impl FnOnce(&AtomicBool) -> adventures::Result<T> + Send,
) -> PyResult<T> {
    let cancel = AtomicBool::new(false);
    py.detach(|| {
        pool.in_place_scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let cancel = &cancel;
            scope.spawn(move |_| {
                // As above.
                let _ = sender.send(guard(|| f(cancel)));
            });
            wait(&receiver, cancel)
        })
    })
}

/// Runs `f` without Python's lock on the thread that it is called in, where nobody looks for signals: for some milliseconds.
pub(crate) fn run_here<T: Send>(
    py: Python<'_>,
    f: impl FnOnce() -> Option<adventures::Result<T>> + Send,
) -> Option<PyResult<T>> {
    py.detach(|| guard(|| f().transpose()).transpose())
}

/// Waits for a result, looking for signals meanwhile.
fn wait<T>(result: &Receiver<PyResult<T>>, cancel: &AtomicBool) -> PyResult<T> {
    let mut signal = None;
    loop {
        match result.recv_timeout(SIGNAL_PERIOD) {
            Ok(result) => return signal.map_or_else(|| result, Err),
            Err(RecvTimeoutError::Disconnected) => return Err(panicked("its thread ended")),
            Err(RecvTimeoutError::Timeout) if signal.is_none() => {
                #[allow(
                    clippy::redundant_closure_for_method_calls,
                    reason = "the method is not general enough over its lifetime"
                )]
                if let Err(e) = Python::attach(|py| py.check_signals()) {
                    cancel.store(true, Ordering::Relaxed);
                    signal = Some(e);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Runs `f`, turning its error or panic into an exception.
pub(crate) fn guard<T>(f: impl FnOnce() -> adventures::Result<T>) -> PyResult<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| PyError(e).into()),
        Err(panic) => Err(panicked(&message(&*panic))),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

fn panicked(message: &str) -> PyErr {
    AdventuresError::new_err(format!("internal error: {message}; this is a bug in adventures"))
}

/// The process that made an object. Its threads do not survive a fork, so a child that used it would wait for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(u32);

impl Process {
    /// Returns this process.
    pub(crate) fn current() -> Self {
        Self(std::process::id())
    }

    /// Fails in any process but the one that made `what`.
    pub(crate) fn check(self, what: &str) -> PyResult<()> {
        if self.0 == std::process::id() {
            return Ok(());
        }
        Err(AdventuresError::new_err(format!(
            "this {what} was made before the process forked and its threads are gone; make it in the child, or start \
             processes with the \"spawn\" method"
        )))
    }
}
