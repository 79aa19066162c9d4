//! Probes: what is asked of a running service.

pub mod schedule;
