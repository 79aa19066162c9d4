//! `blackhole-bridge`: the daemon.

use std::process::ExitCode;

use blackhole_bus_schema::daemon::{self, DaemonArgs};
use blackhole_bus_schema::names::Component;
use clap::Parser;

/// Carries calls between the services of a host
#[derive(Debug, Parser)]
#[command(name = "blackhole-bridge", version)]
struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    match daemon::run(
        Component::Bridge,
        Args::parse().daemon,
        blackhole_bridge::run,
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            daemon::complain("blackhole-bridge", &anyhow::Error::new(error));
            ExitCode::from(code)
        }
    }
}
