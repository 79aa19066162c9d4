//! `blackhole-supervisor`: see the library.

use std::process::ExitCode;

use blackhole_bus_schema::daemon::{self, DaemonArgs};
use clap::Parser;

/// Decides what runs: desired state, order, health, restarts.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    match blackhole_supervisor::run(Flags::parse().daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            daemon::complain("blackhole-supervisor", &anyhow::Error::new(error));
            ExitCode::from(code)
        }
    }
}
