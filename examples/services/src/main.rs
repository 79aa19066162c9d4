//! `blackhole-example ROLE …`: one program, many small services.

use blackhole_example_services::{Args, run};
use clap::Parser;

fn main() -> anyhow::Result<()> {
    run(Args::parse())
}
