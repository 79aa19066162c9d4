//! The commands, one file each.

mod bus;
mod call;
mod component;
mod config;
mod dependents;
mod doctor;
mod events;
mod health;
mod homes;
pub(crate) mod logs;
mod metrics;
mod monitor;
mod orphans;
mod reload;
mod services;
mod signal;
mod status;
mod tap;
mod waiting;
mod watched;

use clap::CommandFactory;

pub(crate) use services::show as show_services;

use crate::args::{BusCmd, Cli, Cmd, ComponentCmd, ConfigCmd};
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::{access, out, up};

/// Runs a command to its end and prints what went wrong.
pub fn run(cli: Cli) -> Exit {
    let result = match cli.command {
        // Needs neither directories nor a runtime.
        Cmd::Completions { shell } => completions(shell),
        command => Context::new(cli.global).and_then(|context| on_runtime(context, command)),
    };
    match result {
        Ok(()) => Exit::Done,
        Err(error) => {
            if !error.is_quiet() {
                out::note(error.report());
            }
            error.exit()
        }
    }
}

fn on_runtime(context: Context, command: Cmd) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("make", "the runtime", source))?;
    let result = runtime.block_on(dispatch(&context, command));
    // The process ends now. What is left (sockets, a task that still reads a file) goes with it:
    // taking it apart piece by piece would only hold the prompt back.
    std::mem::forget(runtime);
    result
}

async fn dispatch(context: &Context, command: Cmd) -> Result<(), Error> {
    if context.offline
        && !matches!(
            command,
            Cmd::Status(_) | Cmd::Logs(_) | Cmd::Stop(_) | Cmd::Kill(_)
        )
    {
        return Err(Error::Usage(
            "--offline works with status, logs, stop and kill: everything else needs the daemons"
                .to_owned(),
        ));
    }
    // These tell what they find, or need nothing of a deployment.
    if !matches!(
        command,
        Cmd::Config(_) | Cmd::Doctor | Cmd::Completions { .. }
    ) {
        access::check(&context.dirs)?;
    }
    match command {
        Cmd::Up(args) => up::run(context, &args).await,
        Cmd::Down => up::down(context).await,
        Cmd::Start(targets) => services::start(context, &targets).await,
        Cmd::Stop(targets) => services::stop(context, &targets).await,
        Cmd::Restart(targets) => services::restart(context, &targets).await,
        Cmd::Reset(targets) => services::reset(context, &targets).await,
        Cmd::Reload(args) => reload::run(context, &args).await,
        Cmd::Kill(args) => signal::run(context, &args.names, args.signal).await,
        Cmd::Signal(args) => signal::run(context, &args.names, args.signal).await,
        Cmd::Status(args) => status::run(context, &args).await,
        Cmd::Logs(args) => {
            args.check()?;
            logs::run(context, &args).await
        }
        Cmd::Health(args) => health::run(context, &args).await,
        Cmd::Monitor(args) => monitor::run(context, &args).await,
        Cmd::Events(args) => events::run(context, &args).await,
        Cmd::Call(args) => call::run(context, &args).await,
        Cmd::Metrics => metrics::run(context).await,
        Cmd::Config(ConfigCmd::Init { file }) => config::init(context, file.as_deref()),
        Cmd::Config(ConfigCmd::Validate) => config::validate(context),
        Cmd::Config(ConfigCmd::Show) => config::show(context),
        Cmd::Component(ComponentCmd::List) => component::list(context).await,
        Cmd::Component(ComponentCmd::Restart { component }) => {
            component::restart(context, &component).await
        }
        Cmd::Bus(BusCmd::Tap {
            prefixes,
            count,
            show_secrets,
        }) => tap::run(context, &prefixes, count, show_secrets).await,
        Cmd::Bus(BusCmd::Ping { components, count }) => {
            bus::ping(context, &components, count).await
        }
        Cmd::Doctor => doctor::run(context).await,
        Cmd::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Error> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "blackhole", &mut text);
    out::print(text)
}
