//! `blackhole`, the command line.

use std::process::ExitCode;

use blackhole_cli::args::Cli;
use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(blackhole_cli::cmd::run(Cli::parse()) as u8)
}
