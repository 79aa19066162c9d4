//! Spawns, adopts, probes and stops the services of a host.

pub mod environment;
pub mod log;
pub mod machine;
pub mod probe;
pub mod shim;
pub mod table;
