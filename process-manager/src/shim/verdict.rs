//! Why a service ended: one answer, whatever raced with what.

use blackhole_bus_schema::process::{ExitResult, ExitStatus};

/// What is known when nothing of a service is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// How its first process ended.
    pub(crate) status: ExitStatus,
    /// It was asked to stop, or killed by request, while it ran.
    pub(crate) stop_asked: bool,
    /// That request said that it counts as unhealthy.
    pub(crate) unhealthy: bool,
    /// The grace ran out while it ran.
    pub(crate) timed_out: bool,
    /// The OOM killer was at work in its cgroup since its start.
    pub(crate) oom_rose: bool,
    /// Codes that count as success.
    pub(crate) success_codes: &'a [i32],
}

/// The verdict. A stop that was asked for before the end was seen explains it;
/// then the OOM killer explains a SIGKILL (also one that a shell passes on as
/// 137); else the process explains itself.
pub(crate) fn verdict(facts: Facts<'_>) -> ExitResult {
    const SIGKILL: i32 = 9;
    let killed = matches!(
        facts.status,
        ExitStatus::Signaled {
            signal: SIGKILL,
            ..
        } | ExitStatus::Exited { code: 137 }
    );
    if facts.unhealthy {
        return ExitResult::Unhealthy;
    }
    if facts.timed_out {
        return ExitResult::StopTimeout;
    }
    if facts.stop_asked {
        return ExitResult::Stopped;
    }
    match facts.status {
        ExitStatus::Exited { code } if facts.success_codes.contains(&code) => ExitResult::Success,
        _ if facts.oom_rose && killed => ExitResult::OomKill,
        ExitStatus::Exited { .. } => ExitResult::ExitCode,
        ExitStatus::Signaled { .. } | ExitStatus::Unknown => ExitResult::Signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_one_verdict() {
        let exited = |code| ExitStatus::Exited { code };
        let signaled = |signal| ExitStatus::Signaled {
            signal,
            core_dumped: false,
        };
        let facts = |status| Facts {
            status,
            stop_asked: false,
            unhealthy: false,
            timed_out: false,
            oom_rose: false,
            success_codes: &[0, 3],
        };
        assert_eq!(verdict(facts(exited(0))), ExitResult::Success);
        assert_eq!(verdict(facts(exited(3))), ExitResult::Success);
        assert_eq!(verdict(facts(exited(1))), ExitResult::ExitCode);
        assert_eq!(verdict(facts(signaled(11))), ExitResult::Signal);
        let oom = |status| {
            verdict(Facts {
                oom_rose: true,
                ..facts(status)
            })
        };
        assert_eq!(oom(signaled(9)), ExitResult::OomKill);
        assert_eq!(oom(exited(137)), ExitResult::OomKill);
        assert_eq!(oom(signaled(11)), ExitResult::Signal);
        assert_eq!(oom(exited(1)), ExitResult::ExitCode);
        let stopped = |status| {
            verdict(Facts {
                stop_asked: true,
                oom_rose: true,
                ..facts(status)
            })
        };
        assert_eq!(stopped(signaled(9)), ExitResult::Stopped);
        assert_eq!(stopped(exited(1)), ExitResult::Stopped);
        let late = Facts {
            stop_asked: true,
            timed_out: true,
            ..facts(signaled(9))
        };
        assert_eq!(verdict(late), ExitResult::StopTimeout);
        assert_eq!(
            verdict(Facts {
                unhealthy: true,
                ..late
            }),
            ExitResult::Unhealthy
        );
    }
}
