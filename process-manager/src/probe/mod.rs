//! Probes: what is asked of a running service.
//!
//! [`schedule`] decides when, [`check`] asks. The verdict over the answers is
//! the supervisor's.

pub mod check;
mod exec;
mod http;
pub mod rpc;
pub mod schedule;
