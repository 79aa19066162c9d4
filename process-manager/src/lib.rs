//! Spawns, adopts, probes and stops the services of a host.

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
