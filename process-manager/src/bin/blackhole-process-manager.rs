//! The process-manager daemon. Everything it does is in the library.

use std::process::ExitCode;

use blackhole_bus_schema::daemon;
use blackhole_process_manager::cli;
use clap::Parser;

fn main() -> ExitCode {
    match cli::main(cli::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            daemon::complain("blackhole-process-manager", &anyhow::Error::new(error));
            ExitCode::from(code)
        }
    }
}
