//! What can go wrong, which exit code that is, and what to do about it.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blackhole_bus_schema::config::{ConfigError, Document};
use blackhole_bus_schema::dirs::DirsError;
use blackhole_bus_schema::reply::{Code, Status};

use crate::human;

/// Exit codes of the program. They are part of its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong flags or a wrong configuration.
    Usage = 2,
    /// No such service, instance or component.
    NotFound = 3,
    /// No daemon that could do it answers.
    Unreachable = 4,
    /// It took longer than allowed.
    TimedOut = 5,
    /// Refused: admission, circuit, another `up` runs.
    Refused = 6,
    /// Ended by Ctrl-C: 128 and the number of the signal, as a shell has it.
    Interrupted = 130,
}

/// A command's failure. [`Error::report`] is what the person sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The flags make no sense together.
    #[error("{0}")]
    Usage(String),
    /// The configuration is missing or wrong. Its text stands for itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Several things in the configuration are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: "))]
    Mistakes(Vec<ConfigError>),
    /// No configuration was named and none is at the usual places.
    #[error("no configuration file: looked for {}", .tried.join(", "))]
    NoConfig {
        /// Where it was looked for.
        tried: Vec<String>,
    },
    /// The directories cannot be used.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// A named thing does not exist.
    #[error("no {what} named {name:?}")]
    NotFound {
        /// `service`, `instance`, …
        what: &'static str,
        /// As given.
        name: String,
        /// Names that do exist, nearest first.
        known: Vec<String>,
    },
    /// No daemon that could do it answers.
    #[error("cannot {operation}: no answer from {component}")]
    Unreachable {
        /// What was wanted, as a verb: `start web`.
        operation: String,
        /// Who should have answered.
        component: String,
    },
    /// The process-managers that have what was meant do not answer, others may.
    #[error("cannot {operation}: no answer from {component}")]
    Away {
        /// What was wanted, as a verb, and of what.
        operation: String,
        /// Who should have answered.
        component: String,
        /// The command that does without them.
        offline: String,
    },
    /// No daemon at all answers.
    #[error("cannot {operation}: no daemon answers in {}", .run.display())]
    Nobody {
        /// What was wanted, as a verb.
        operation: String,
        /// The run directory.
        run: PathBuf,
        /// Instances that live without any daemon.
        live: usize,
    },
    /// It took longer than allowed.
    #[error("cannot {operation} within {}", human::duration(*.after))]
    TimedOut {
        /// What was wanted, as a verb.
        operation: String,
        /// The time allowed.
        after: Duration,
    },
    /// It took longer than allowed because a daemon is away that nothing goes on without.
    #[error("cannot {operation} within {}: the {component} does not answer", human::duration(*.after))]
    Waited {
        /// What was wanted, as a verb.
        operation: String,
        /// The time allowed.
        after: Duration,
        /// Who did not answer.
        component: &'static str,
    },
    /// Ctrl-C while a daemon is at it, which goes on.
    #[error("no longer waiting: {operation} goes on")]
    Interrupted {
        /// What was wanted, as a verb.
        operation: String,
    },
    /// A daemon refused or failed it.
    #[error("cannot {operation}")]
    Refused {
        /// What was wanted, as a verb.
        operation: String,
        /// What it said.
        #[source]
        status: Status,
    },
    /// A call to a service failed.
    #[error("cannot {operation}")]
    Called {
        /// What was wanted, as a verb.
        operation: String,
        /// What the service or the bridge said.
        #[source]
        status: Status,
    },
    /// The bus itself failed.
    #[error("cannot {operation}")]
    Bus {
        /// What was wanted, as a verb.
        operation: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A system call failed.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// What was wanted, as a verb: `open`, `lock`.
        operation: &'static str,
        /// Of which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ran, and the outcome is a failure.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
        /// What to do about it; empty when there is nothing to add.
        hint: String,
    },
    /// Another keeper runs, a state of things forbids it.
    #[error("{message}")]
    Forbidden {
        /// What is in the way.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// Whoever read standard output has gone: not an error worth a word.
    #[error("standard output is closed")]
    BrokenPipe,
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The outcome was already shown; only the exit code is left to say.
    #[error("failed")]
    Shown(Exit),
}

impl Error {
    /// What is wrong with a configuration, all of it.
    pub fn of_config(path: &Path, first: ConfigError) -> Self {
        let mut all = match first {
            ConfigError::Invalid(_) => Document::mistakes(path),
            _ => Vec::new(),
        };
        match all.len() {
            // It may have been mended meanwhile: then what was found first counts.
            0 => Self::Config(first),
            1 => Self::Config(all.pop().unwrap_or(first)),
            _ => Self::Mistakes(all),
        }
    }

    /// A failed file operation.
    pub fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            operation,
            path: path.into(),
            source: source.into(),
        }
    }

    /// The exit code that belongs to it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_)
            | Self::Config(_)
            | Self::Mistakes(_)
            | Self::NoConfig { .. }
            | Self::Dirs(DirsError::Unknown { .. } | DirsError::TooLong { .. }) => Exit::Usage,
            Self::NotFound { .. } => Exit::NotFound,
            Self::Unreachable { .. } | Self::Away { .. } | Self::Nobody { .. } => Exit::Unreachable,
            Self::TimedOut { .. } | Self::Waited { .. } => Exit::TimedOut,
            Self::Refused { status, .. } | Self::Called { status, .. } => exit_of(status.code),
            Self::Forbidden { .. } => Exit::Refused,
            Self::Interrupted { .. } => Exit::Interrupted,
            Self::BrokenPipe => Exit::Done,
            Self::Shown(exit) => *exit,
            Self::Dirs(_)
            | Self::Bus { .. }
            | Self::Io { .. }
            | Self::Failed { .. }
            | Self::Output(_) => Exit::Failed,
        }
    }

    /// Whether nothing is to be printed for it.
    pub fn is_quiet(&self) -> bool {
        matches!(self, Self::BrokenPipe | Self::Shown(_))
    }

    /// What to do about it; empty when there is nothing to add.
    pub fn hint(&self) -> String {
        match self {
            Self::NoConfig { .. } => "name one with -c FILE".to_owned(),
            Self::Mistakes(all) => format!("mend these {}", human::count(all.len(), "mistake")),
            Self::NotFound { known, .. } if !known.is_empty() => {
                format!("known: {}", human::list(known, 8))
            }
            Self::NotFound { .. } => "`blackhole status` lists what there is".to_owned(),
            Self::Nobody { live: 0, .. } => {
                "`blackhole up -c FILE` starts everything; is this the right --run-dir?".to_owned()
            }
            Self::Nobody { live, .. } => format!(
                "{} on without them: `blackhole --offline status` shows, `blackhole up` takes over",
                if *live == 1 {
                    "1 instance lives".to_owned()
                } else {
                    format!("{live} instances live")
                }
            ),
            Self::Unreachable { .. } => {
                "`blackhole component list` shows who is there, `blackhole up` starts what is \
                 missing; status, logs, stop and kill also work without daemons, with --offline"
                    .to_owned()
            }
            Self::Away { offline, .. } => format!(
                "what runs there runs on, and `{offline}` does without the process-manager; \
                 `blackhole up -d` starts what is missing, `blackhole component list` shows who is \
                 there"
            ),
            Self::TimedOut { .. } => "it may still go on: `blackhole status` shows how far it is; \
                 --timeout allows more time"
                .to_owned(),
            Self::Interrupted { .. } => "`blackhole status` shows what becomes of it".to_owned(),
            Self::Waited { component, .. } => format!(
                "the supervisor keeps the command and carries it out when there is a {component} \
                 again: `blackhole up -d` starts it; `blackhole --offline stop` does without"
            ),
            Self::Refused { status, .. } => match status.code {
                Code::ResourceExhausted => {
                    "stop something, or lower its cpu_request_percent or memory_request_mb"
                        .to_owned()
                }
                Code::NotFound => "`blackhole status` lists what there is".to_owned(),
                Code::Unavailable => {
                    "try again; `blackhole component list` shows who is there".to_owned()
                }
                Code::DeadlineExceeded => {
                    "`blackhole status` and `blackhole logs` show how far it \
                     is; --timeout allows more time"
                        .to_owned()
                }
                Code::Unimplemented => {
                    "the daemon is of another version: `blackhole component list` shows which"
                        .to_owned()
                }
                _ => String::new(),
            },
            Self::Called { status, .. } => match status.code {
                Code::NotFound | Code::Unavailable => {
                    "`blackhole status` shows whether it runs; a service that takes calls \
                     registers with the bridge"
                        .to_owned()
                }
                Code::DeadlineExceeded => "--budget allows more time".to_owned(),
                _ => String::new(),
            },
            Self::Dirs(DirsError::Io { .. } | DirsError::Unsafe { .. }) => {
                "choose others with --run-dir and --state-dir".to_owned()
            }
            Self::Failed { hint, .. } | Self::Forbidden { hint, .. } => hint.clone(),
            _ => String::new(),
        }
    }

    /// The whole text for a person: each cause once, then what to do.
    pub fn report(&self) -> String {
        let mut text = format!("error: {self}");
        let mut last = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            let message = cause.to_string();
            // A library's error sometimes repeats its own cause.
            if !last.contains(&message) {
                let _ = write!(text, "\n  because: {}", message.replace('\n', "\n  "));
                last = message;
            }
            source = cause.source();
        }
        let hint = self.hint();
        if !hint.is_empty() {
            let _ = write!(text, "\n  to do: {hint}");
        }
        text
    }
}

/// The exit code of a status a daemon answered with.
pub fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Done,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::Unavailable => Exit::Unreachable,
        Code::DeadlineExceeded => Exit::TimedOut,
        Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::AlreadyExists
        | Code::Unauthenticated => Exit::Refused,
        Code::Cancelled
        | Code::Unknown
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_and_then_what_to_do() {
        let error = Error::Refused {
            operation: "start web".into(),
            status: Status::new(
                Code::ResourceExhausted,
                "memory: 300 MiB asked for, 200 MiB left",
            ),
        };
        assert_eq!(error.exit(), Exit::Refused);
        insta::assert_snapshot!(error.report(), @"
        error: cannot start web
          because: memory: 300 MiB asked for, 200 MiB left
          to do: stop something, or lower its cpu_request_percent or memory_request_mb
        ");
    }

    #[test]
    fn a_cause_that_repeats_itself_is_not_told_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Outer(#[source] io::Error);
        let error = Error::Bus {
            operation: "ask".into(),
            source: Box::new(Outer(io::Error::other("disk on fire"))),
        };
        assert_eq!(error.report().matches("disk on fire").count(), 1);
    }

    #[test]
    fn directories_that_cannot_be_told_are_a_matter_of_usage() {
        let unknown = DirsError::Unknown {
            what: "run",
            upper: "RUN",
            variable: "XDG_RUNTIME_DIR",
        };
        assert_eq!(Error::from(unknown).exit(), Exit::Usage);
    }

    #[test]
    fn codes_of_the_design() {
        for (code, exit) in [
            (Code::NotFound, 3),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 5),
            (Code::ResourceExhausted, 6),
            (Code::FailedPrecondition, 6),
            (Code::Internal, 1),
            (Code::InvalidArgument, 2),
        ] {
            assert_eq!(exit_of(code) as u8, exit, "{code}");
        }
    }
}
