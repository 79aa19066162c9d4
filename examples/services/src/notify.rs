//! What the services say of themselves over `NOTIFY_SOCKET`, see sd_notify(3).
//! Without that variable (a service started by hand) nothing is said.

use sd_notify::NotifyState;

/// Ready to serve, with a word about it.
pub(crate) fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Still working towards readiness, or going on with something new.
pub(crate) fn status(status: &str) {
    say(&[NotifyState::Status(status)]);
}

/// About to end in order.
pub(crate) fn stopping() {
    say(&[NotifyState::Stopping]);
}

/// Alive.
pub(crate) fn watchdog() {
    say(&[NotifyState::Watchdog]);
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        eprintln!("cannot notify the supervisor: {error}");
    }
}
