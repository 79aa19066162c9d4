//! The supervisor: what should run, in which order, whether it is well, and when
//! it is started again. It spawns and kills nothing by itself.
//!
//! ```text
//!   cmd.supervisor.                                       evt.supervision., rep.<client>.
//!        │                                                      ▲
//!        ▼            Input             Action                  │ Publish, Answer
//!   ┌────────┐    ┌───────────┐     ┌───────────┐     ┌─────────┴─────────┐
//!   │ Server ├───►│           ├────►│           ├────►│ Server            │
//!   └────────┘    │   shell   │ core│   shell   │     └───────────────────┘
//!   ┌────────┐    │ (one loop)│     │ (perform) │     ┌───────────────────┐
//!   │ Links  ├───►│           │     │           ├────►│ Store: Persist,   │
//!   └────────┘    └─▲───────▲─┘     └─────┬─────┘     │ before what follows│
//!     deadlines ────┘       │ replies     │ requests  └───────────────────┘
//!                           └── tasks ◄───┘ to process-manager, resource-controller, bridge
//! ```
//!
//! | task | in | out | bound, and when full |
//! |---|---|---|---|
//! | [`shell`]'s loop | commands, events of the links, replies, the core's deadline, SIGTERM | actions, performed in order | the links' queues: a link that is not read heals itself by a snapshot |
//! | one for each request under way | – | its reply, as an input | at most a few for each instance, since the core has one open at a time; 1024 replies wait, then the tasks do |
//!
//! [`core`] decides and is pure. [`store`] remembers (SQLite): what follows a
//! `Persist` is done after it is written. When the supervisor dies, services run
//! on; its successor reads what was written, hears from the process-manager what
//! is, and goes on from there.

use blackhole_bus_schema::daemon::{DaemonArgs, DaemonError, run as run_daemon};
use blackhole_bus_schema::names::Component;

pub mod core;
pub mod shell;
pub mod store;

pub use shell::SupervisorError;

/// Runs the daemon; called once, by `main`.
///
/// # Errors
/// See [`DaemonError`].
pub fn run(args: DaemonArgs) -> Result<(), DaemonError<SupervisorError>> {
    run_daemon(Component::Supervisor, args, shell::serve)
}
