//! The cgroup engine against this host's kernel. Each test works in a subtree
//! of its own below the own cgroup and removes it, also when it panics.
//! Without the right to make groups the tests of enforcement are skipped, by
//! a line on stderr; those of the reports run everywhere.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests fail by panicking, too.

mod lifecycle;
mod limits;
#[path = "../qemu/mod.rs"]
mod qemu;
mod support;
mod unprivileged;

#[test]
#[ignore = "boots a virtual machine"]
fn on_a_host_with_v1_only() {
    qemu::run_in_guest("v1", &[]);
}

#[test]
#[ignore = "boots a virtual machine"]
fn on_a_host_with_v2_only() {
    qemu::run_in_guest("v2", &[]);
}
