//! The daemon as a program, over its bus. Each test has its own directories,
//! and with them its own subtree of cgroups, which is removed at the end.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail by panicking, too.

mod commands;
mod lives;
mod support;
mod unprivileged;
mod usage;
