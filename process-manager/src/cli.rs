//! The command line of the daemon.

use std::path::PathBuf;

use blackhole_bus_schema::config::{Config, ConfigError};
use blackhole_bus_schema::daemon::{self, DaemonArgs, DaemonError};
use blackhole_bus_schema::names::{Component, ManagerName};

use crate::manager::{ManagerError, Settings, run};
use crate::shim::client::ForkServerOptions;

/// Spawns, adopts, probes and stops the services of a host.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "blackhole-process-manager", version)]
pub struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Name of this process-manager, where there are several
    #[arg(long, value_name = "NAME", env = "BLACKHOLE_PROCESS_MANAGER_NAME")]
    name: Option<ManagerName>,
    /// The program blackhole-shim [default: beside this one]
    #[arg(long, value_name = "FILE", env = "BLACKHOLE_SHIM")]
    shim: Option<PathBuf>,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// See [`DaemonError`].
pub fn main(args: Args) -> Result<(), DaemonError<ManagerError>> {
    let Args {
        daemon: args,
        name,
        shim,
    } = args;
    // Without a file the environment still has a say.
    let defaults = defaults()?;
    let shim = shim.unwrap_or_else(beside);
    daemon::run(
        Component::ProcessManager(name.clone()),
        args,
        move |daemon| {
            let config = daemon.config.as_ref().unwrap_or(&defaults);
            let settings = Settings {
                max_processes: config.orchestrator.max_processes_of(name.as_ref()),
                fork_server: ForkServerOptions::new(shim),
            };
            run(daemon, settings)
        },
    )
}

fn defaults() -> Result<Config, ConfigError> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Config::parse_in("", "the defaults", std::path::Path::new("/"), variables)
}

/// `blackhole-shim` in the directory of this program, else looked up in `PATH`.
fn beside() -> PathBuf {
    let name = "blackhole-shim";
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join(name)));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}
