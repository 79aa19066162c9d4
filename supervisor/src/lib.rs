//! Decides what runs: desired state, order, health, restarts.

pub mod core;
