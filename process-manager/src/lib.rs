//! Spawns, adopts, probes and stops the services of a host.
