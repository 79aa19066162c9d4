//! Waiting for a condition.

use std::time::{Duration, Instant};

/// Protection against a hang, not an expectation: a loaded machine may take
/// many times what an idle one does.
pub const HANG: Duration = Duration::from_secs(60);

/// Time between two looks. Where a test looks from outside (at `/proc`, at a
/// command's output) there is no event to await.
const LOOK: Duration = Duration::from_millis(50);

/// Looks until `look` gives a value. `look` gives back what it saw otherwise,
/// for the message of the panic that comes after [`HANG`].
///
/// # Panics
/// When nothing came in time; the message has `what` and what was seen last.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    wait_at_most(HANG, what, &mut look)
}

/// The same with a limit of its own, for conditions that take long by design.
///
/// # Panics
/// As [`wait_for`].
#[track_caller]
pub fn wait_at_most<T>(
    limit: Duration,
    what: &str,
    look: &mut dyn FnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        let seen = match look() {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for {what}; seen last:\n{seen}"
        );
        std::thread::sleep(LOOK);
    }
}
