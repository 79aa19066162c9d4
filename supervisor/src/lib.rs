//! Decides what runs: desired state, order, health, restarts.
