//! `blackhole-resource-controller`: see the library.

use std::process::ExitCode;

use blackhole_bus_schema::daemon::{self, DaemonArgs};
use clap::Parser;

/// Admits services to the host, makes their cgroups, applies limits and measures usage.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    match blackhole_resource_controller::run(Flags::parse().daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            daemon::complain("blackhole-resource-controller", &anyhow::Error::new(error));
            ExitCode::from(code)
        }
    }
}
