//! The daemon as a program, over its bus, with a process-manager that only
//! pretends to have processes.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail by panicking, too.

mod commands;
mod lives;
mod manager;
mod support;
