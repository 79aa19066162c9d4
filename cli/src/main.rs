//! `blackhole`, the command line.

use std::process::ExitCode;

use blackhole_cli::args::Cli;
use blackhole_cli::kill_style;
use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(
        blackhole_cli::cmd::run(Cli::parse_from(kill_style::plain(std::env::args_os()))) as u8,
    )
}
