//! The process-manager: spawns, adopts, probes and stops the services of a
//! host. It acts on commands and reports; whether something is started again
//! is never decided here.
//!
//! ```text
//!            commands                         events, answers        log lines
//!  bus ─────────┐                        ┌───────────▲───────────────────▲──── bus
//!               ▼                        │           │                   │
//!      ┌──────────────────── manager ────┴───┐       │            ┌──────┴──────┐
//!      │  table (core) ◄── facts ── schedule │   probe tasks      │  follower   │
//!      │   │ actions         ▲      (core)   │───────┘            │ (log files) │
//!      └───┼─────────────────┼───────────────┘                    └─────────────┘
//!          ▼                 │
//!       launch tasks     listeners, one a live instance        keeper of the fork server
//!          │                 ▲                                        │
//!  ────────┼─────────────────┼────────────────────────────────────────┼──── unix sockets
//!          ▼                 │                                        ▼
//!      idle shims ──► shim ──┘  (parent of the service)           fork server
//! ```
//!
//! | task | input | output | bound |
//! |---|---|---|---|
//! | main ([`manager`]) | commands (bus), facts, shutdown, the next probe's deadline | events, answers, tasks | one |
//! | launch | an action of the table | fact `Launch` | 32 at a time, others wait for a place |
//! | listener | a shim's events | fact `Shim` | one a live instance |
//! | probe | a run of the schedule | fact `Probe` | 64 at a time, others wait in the schedule |
//! | sweep, take-down | a lost or mute shim | fact `Lost` | one an instance |
//! | keeper | the fork server's death | fact `ForkServer` | one |
//! | follower ([`log::Follower`]) | `process.follow_log`, inotify | lines on the log lane | one, 256 logs |
//! | log readers | `process.read_log` | the answer | 64, more are refused |
//! | log keeper ([`log::Keeper`]) | inotify, the clock | compressed and removed files | one thread, nice 19, one file at a time |
//!
//! | channel | capacity | when full |
//! |---|---|---|
//! | commands (bus → main) | 1024, the bus's | refused with `ResourceExhausted` |
//! | facts (tasks → main) | 1024 | the task waits; a shim behind a listener buffers, then cuts and is asked again |
//! | shim → listener | 64, the shim client's | the client stops reading |
//! | follow requests (main → follower) | 64 | refused with `ResourceExhausted` |
//! | events (main → publisher) | 4096, the bus's | main waits for the publisher, which waits for nobody |
//!
//! Nothing that may block (files that secrets are in, logs, records, killing)
//! is done on the runtime's thread, but for a few unlinks.
//!
//! | module | what it holds |
//! |---|---|
//! | [`machine`], [`table`] | states and edges; all instances, admission, generations: no I/O |
//! | [`manager`] | the main task |
//! | [`launch`], [`environment`], [`users`] | from a specification to a process |
//! | [`adopt`] | what a manager that starts finds; lost and mute shims |
//! | [`probe`] | when probes are due (no I/O), and asking |
//! | [`log`] | reading, following and keeping log files |
//! | [`host`] | the kernel's word on boots and processes |
//! | [`shim`] | fork server, shims, and the client to them |
//! | [`cli`] | flags |
//!
//! Under systemd the unit needs `KillMode=process`: services live in the same
//! unit's cgroup and outlive the daemon.

pub mod adopt;
pub mod cli;
pub mod environment;
pub mod host;
pub mod launch;
pub mod log;
pub mod machine;
pub mod manager;
pub mod probe;
mod readiness;
pub mod shim;
pub mod table;
pub mod users;
