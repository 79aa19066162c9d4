//! The command line as clap sees it: flags, commands and their help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs the services of one host as supervised processes.
#[derive(Debug, Parser)]
#[command(
    name = "blackhole",
    version = blackhole_bus_schema::VERSION,
    propagate_version = false,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not found, \
                  4 control plane unreachable, 5 timed out, 6 refused, 130 Ctrl-C."
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Cmd,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Configuration file [default: the running keeper's, ./blackhole.yaml, /etc/blackhole/blackhole.yaml]
    #[arg(
        short,
        long,
        value_name = "FILE",
        global = true,
        env = "BLACKHOLE_CONFIG"
    )]
    pub config: Option<PathBuf>,
    /// Directory of the sockets [default: $BLACKHOLE_RUN_DIR, /run/blackhole for root, $XDG_RUNTIME_DIR/blackhole]
    #[arg(long, value_name = "DIR", global = true)]
    pub run_dir: Option<PathBuf>,
    /// Directory of locks, records, database and logs [default: $BLACKHOLE_STATE_DIR, /var/lib/blackhole for root, $XDG_STATE_HOME/blackhole]
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Form of the result on standard output
    #[arg(
        short,
        long,
        value_name = "FORM",
        global = true,
        default_value = "table"
    )]
    pub output: Format,
    /// Speak to the processes' own sockets and read their records: works with no daemon at all (status, logs, stop, kill)
    #[arg(long, global = true)]
    pub offline: bool,
    /// Longest time the command may take, for instance 500ms, 30s, 2m; what would go on for ever (logs -f, monitor, events) ends then
    #[arg(long, value_name = "TIME", global = true, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// Form of the result on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; one document, or one a line for streams.
    Json,
    /// For programs and people.
    Yaml,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Cmd {
    /// Start the daemons and all services, show what happens, stop everything on Ctrl-C
    ///
    /// A service is ready when its probes pass. What has none counts as ready when it has run for 1.5 s, what
    /// has failed meanwhile when it has run for twice as long as before (2 s to 5 s). What ran before and goes on is as
    /// ready as the supervisor says. What is waited for is told with the reason after 10 s, 30 s, 70 s and so on;
    /// --detach waits for 2 m, or for --timeout, and then ends with exit code 5: the keeper goes on.
    Up(Up),
    /// Stop all services in order, then the daemons
    Down,
    /// Start services and what they depend on, until they are ready
    Start(Targets),
    /// Stop services and what depends on them; they stay stopped
    Stop(Targets),
    /// Stop and start services
    Restart(Targets),
    /// Close the circuit of services, forget their failures and start them
    Reset(Targets),
    /// Have services read their own configuration again, as their `reload` says
    Reload(Reload),
    /// Send SIGKILL (or another signal) to the first process of services
    Kill(Kill),
    /// Send a signal to the first process of services
    Signal(Signal),
    /// Show what runs, what does not, and why
    ///
    /// RESTARTS counts the starts that followed an end that nobody asked for, or a start that failed,
    /// also those that no daemon saw, and an end with success where the policy is `always`. It begins
    /// with 0 again when an operator stops, restarts or resets the service, or starts it while it does
    /// not run. Not counted, since nothing failed: a restart together with a dependency, or with the host.
    /// `-o json` has more, as whether a successor waits (`standby`). There the column LIMITS is
    /// `limits`, and the reason of a trouble `why`, which is left out where there is none.
    Status(Status),
    /// Show the output of services
    ///
    /// Times are shown, and read where they have neither Z nor an offset, in the time zone of this host or of TZ.
    /// `-o json` has them in UTC, as the files do.
    Logs(Logs),
    /// Show the verdict on each instance; exit code 1 when one is unhealthy, has failed, or nobody can tell
    Health(Status),
    /// Show status and usage, live
    Monitor(Monitor),
    /// Show what happens, as it happens
    Events(Events),
    /// Call a method of a service, as the operator, and print its answer
    Call(Call),
    /// Print what was measured, in the text format of Prometheus (OpenMetrics)
    Metrics,
    /// Check, show or begin the configuration
    #[command(subcommand)]
    Config(ConfigCmd),
    /// The daemons
    #[command(subcommand)]
    Component(ComponentCmd),
    /// The bus between the daemons
    #[command(subcommand)]
    Bus(BusCmd),
    /// Check this host and what the configuration needs of it, and say what to do about what is wrong
    ///
    /// Of the configuration: users and groups, working directories, files of variables, references,
    /// programs, and addresses to listen on that somebody else has; each with its line. As root this is
    /// tried with the rights of the service's user. References to variables are looked up in the
    /// environment of the process-manager that runs, else in this one.
    Doctor,
    /// Print the completions of a shell
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// `blackhole up`.
#[derive(Debug, Clone, Args)]
pub struct Up {
    /// Leave a keeper behind in the background and return when all services are ready
    #[arg(short, long)]
    pub detach: bool,
    /// This process is the keeper that a detached `up` leaves behind.
    #[arg(long, hide = true)]
    pub keeper: bool,
}

/// The services a command is about.
#[derive(Debug, Clone, Args)]
pub struct Targets {
    /// Names of services, each with all its instances (logs, status, kill and signal take one, too: web.1)
    #[arg(
        value_name = "SERVICE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub services: Vec<String>,
    /// All services of the configuration
    #[arg(long)]
    pub all: bool,
    /// Watch what has no probes for this long after it runs, and fail when it ends meanwhile
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub watch: Option<Duration>,
}

/// `blackhole reload`.
#[derive(Debug, Clone, Args)]
pub struct Reload {
    /// Names of services
    #[arg(
        value_name = "SERVICE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub services: Vec<String>,
    /// All services that have a `reload`
    #[arg(long)]
    pub all: bool,
}

/// `blackhole kill`.
#[derive(Debug, Clone, Args)]
pub struct Kill {
    /// Services (all their instances) or instances (web.1)
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Another signal than SIGKILL, by name or number; as with kill(1) also -9, -HUP, -SIGHUP
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse_signal)]
    pub signal: i32,
}

/// `blackhole signal`.
#[derive(Debug, Clone, Args)]
pub struct Signal {
    /// The signal, by name or number: HUP, SIGUSR1, 15
    #[arg(value_name = "SIGNAL", value_parser = parse_signal)]
    pub signal: i32,
    /// Services (all their instances) or instances (web.1)
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `blackhole status` and `blackhole health`.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Only these services or instances
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// `blackhole logs`.
#[derive(Debug, Clone, Args)]
pub struct Logs {
    /// Services or instances [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Go on with new lines as they come, until everything has gone down
    #[arg(short, long)]
    pub follow: bool,
    /// Last lines to show of each instance [default: 100; with --since, --until, --grep or --previous all]
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<u32>,
    /// Only lines from this time on: RFC 3339, a local date or time of day, 10m (ago), today, yesterday
    #[arg(long, value_name = "TIME", value_parser = crate::view::moment::parse)]
    pub since: Option<jiff::Timestamp>,
    /// Only lines up to this time
    #[arg(long, value_name = "TIME", value_parser = crate::view::moment::parse, conflicts_with = "follow")]
    pub until: Option<jiff::Timestamp>,
    /// Only one of the two streams
    #[arg(long, value_name = "STREAM")]
    pub stream: Option<LogStream>,
    /// Only lines that match a regular expression (syntax of the Rust crate regex)
    #[arg(long, value_name = "REGEX", value_parser = parse_regex)]
    pub grep: Option<regex::bytes::Regex>,
    /// With --grep: only lines that do not match
    #[arg(short = 'v', long, requires = "grep")]
    pub invert_match: bool,
    /// What was written before the latest start (and its hook before_start); exit code 1 when there is nothing
    #[arg(long, conflicts_with = "follow")]
    pub previous: bool,
    /// Only the text, as the service wrote it: no time, name or stream
    #[arg(long, conflicts_with = "output")]
    pub raw: bool,
}

/// One of the two streams of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogStream {
    /// Standard output.
    #[value(alias = "stdout")]
    Out,
    /// Standard error.
    #[value(alias = "stderr")]
    Err,
}

impl Logs {
    /// Whether there can be a line that is meant.
    ///
    /// # Errors
    /// When the last moment comes before the first.
    pub fn check(&self) -> Result<(), crate::error::Error> {
        match (self.since, self.until) {
            (Some(since), Some(until)) if since > until => {
                Err(crate::error::Error::Usage(format!(
                    "--since {since} is later than --until {until}: no line is between them; \
                     exchange the two"
                )))
            }
            _ => Ok(()),
        }
    }
}

fn parse_regex(text: &str) -> Result<regex::bytes::Regex, String> {
    // A pattern from a command line may be large, not endless.
    regex::bytes::RegexBuilder::new(text)
        .size_limit(10 << 20)
        .build()
        .map_err(|error| error.to_string())
}

/// `blackhole monitor`.
#[derive(Debug, Clone, Args)]
pub struct Monitor {
    /// Only these services or instances
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Show it once and return
    #[arg(long)]
    pub once: bool,
    /// Time between two pictures
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub interval: Duration,
}

/// `blackhole events`.
#[derive(Debug, Clone, Args)]
pub struct Events {
    /// Only these services or instances
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// End after this many events
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u64>,
    /// Also usage and heartbeats, which come each second, and probe results that are told again for a daemon
    #[arg(long)]
    pub all: bool,
}

/// `blackhole config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCmd {
    /// Check the configuration; exit code 2 when it is wrong
    Validate,
    /// Show the effective configuration: with all defaults and profiles applied
    Show,
    /// Write a commented configuration to begin with; one that is there is left alone
    Init {
        /// Where to [default: -c FILE, else ./blackhole.yaml; - is standard output]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// `blackhole component`.
#[derive(Debug, Subcommand)]
pub enum ComponentCmd {
    /// List the daemons: process, incarnation, what they miss, what they counted
    List,
    /// End a daemon and wait until its next life answers; services go on
    Restart {
        /// Which daemon
        #[arg(value_name = "COMPONENT")]
        component: String,
    },
}

/// `blackhole bus`.
#[derive(Debug, Subcommand)]
pub enum BusCmd {
    /// Measure the way to a daemon and back; exit code 1 when one does not answer, 4 when none does
    Ping {
        /// Which daemons [default: all]
        #[arg(value_name = "COMPONENT")]
        components: Vec<String>,
        /// How often
        #[arg(short = 'n', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
    },
    /// Show the messages of all daemons, decoded, as they come
    ///
    /// Events and answers are what the daemons publish. Commands are what they say
    /// they received, whoever sent them. Pings and their answers are left out. Log lines travel only
    /// while somebody follows them. An event whose number is not the next one of its
    /// topic is shown with the number of those missing.
    Tap {
        /// Only topics that begin with one of these: evt.process.web., cmd., rep., evt.component.supervisor. [default: all]
        #[arg(value_name = "PREFIX")]
        prefixes: Vec<String>,
        /// End after this many messages
        #[arg(short = 'n', long, value_name = "N")]
        count: Option<u64>,
        /// Show the values of services' environment variables, which may be secrets, and not … instead
        #[arg(long)]
        show_secrets: bool,
    },
}

/// `blackhole call`.
#[derive(Debug, Clone, Args)]
pub struct Call {
    /// The service to call, or one instance of it (web.2)
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// The method
    #[arg(value_name = "METHOD")]
    pub method: String,
    /// What to send: a text, @FILE for a file's bytes, - for standard input [default: nothing]
    #[arg(value_name = "PAYLOAD", allow_hyphen_values = true)]
    pub payload: Option<String>,
    /// Longest time the call may take, waiting for a callee that restarts included
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub budget: Duration,
}

/// A time with a unit: `500ms`, `1.5s`, `2m`, `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("{text:?} is not a time: write a number with a unit, for instance 500ms, 10s, 2m")
    };
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    let time = Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))?;
    if time.is_zero() || time > Duration::from_secs(30 * 24 * 3600) {
        return Err(format!(
            "{text:?} is out of range: more than nothing and at most 30 days"
        ));
    }
    Ok(time)
}

fn parse_signal(text: &str) -> Result<i32, String> {
    blackhole_bus_schema::process::signal_number(text)
        .ok_or_else(|| format!("{text:?} is not a signal: write a name or a number of signal(7), for instance HUP, SIGUSR1, 15"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "5", "s", "-1s", "0s", "10 parsecs", "99999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn global_flags_may_follow_the_command() {
        let cli =
            Cli::try_parse_from(["blackhole", "status", "-o", "json", "--timeout", "2s"]).unwrap();
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(2)));
    }

    #[test]
    fn targets_are_names_or_all_but_not_both() {
        for bad in [
            vec!["blackhole", "stop"],
            vec!["blackhole", "stop", "web", "--all"],
        ] {
            assert!(Cli::try_parse_from(bad.clone()).is_err(), "{bad:?}");
        }
        assert!(Cli::try_parse_from(["blackhole", "stop", "--all"]).is_ok());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let cli = Cli::try_parse_from(["blackhole", "signal", "hup", "web"]).unwrap();
        assert!(matches!(cli.command, Cmd::Signal(Signal { signal: 1, .. })));
        assert!(Cli::try_parse_from(["blackhole", "signal", "NOPE", "web"]).is_err());
    }

    #[test]
    fn what_lines_are_meant_is_checked_before_anything_is_asked() {
        let parse = |words: &[&str]| {
            let all = ["blackhole", "logs"].iter().chain(words);
            Cli::try_parse_from(all).map(|cli| cli.command)
        };
        let good = parse(&[
            "web", "--since", "10m", "--stream", "err", "--grep", "a+", "-v",
        ]);
        assert!(matches!(
            good,
            Ok(Cmd::Logs(Logs {
                since: Some(_),
                stream: Some(LogStream::Err),
                grep: Some(_),
                invert_match: true,
                ..
            }))
        ));
        for (name, stream) in [("stdout", LogStream::Out), ("stderr", LogStream::Err)] {
            match parse(&["--stream", name]) {
                Ok(Cmd::Logs(logs)) => assert_eq!(logs.stream, Some(stream)),
                other => panic!("{other:?}"),
            }
        }
        for bad in [
            &["--grep", "("][..],
            &["--since", "soon"],
            &["--stream", "log"],
            &["--stream", "std"],
            &["-v"],
            &["-f", "--until", "now"],
            &["-f", "--previous"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
