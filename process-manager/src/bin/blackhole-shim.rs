//! The fork server of the process-manager, which starts it by itself.

use blackhole_process_manager::shim::server::{self, ServerArgs};
use clap::Parser;

#[derive(Parser)]
#[command(
    name = "blackhole-shim",
    version,
    about = "Forks the shims that hold Blackhole's services"
)]
struct Args {
    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> anyhow::Result<()> {
    Ok(server::run(&Args::parse().server)?)
}
