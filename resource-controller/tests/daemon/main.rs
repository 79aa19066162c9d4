//! The daemon as a program, over its bus. Each test has its own directories,
//! and with them its own subtree of cgroups, which is removed at the end.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail by panicking, too.

mod commands;
mod delegation;
mod lives;
#[path = "../qemu/mod.rs"]
mod qemu;
mod support;
mod unprivileged;
mod usage;

#[test]
#[ignore = "boots a virtual machine"]
fn on_a_host_with_v1_only() {
    qemu::run_in_guest("v1", &[env!("CARGO_BIN_EXE_blackhole-resource-controller")]);
}

#[test]
#[ignore = "boots a virtual machine"]
fn on_a_host_with_v2_only() {
    qemu::run_in_guest("v2", &[env!("CARGO_BIN_EXE_blackhole-resource-controller")]);
}
