//! Which lines are meant.

use blackhole_bus_schema::process::{Failure, InstanceRecord, ProcessState, SpawnStep};
use blackhole_process_manager::log::Parsed;
use regex::bytes::Regex;

use crate::args::{self, LogStream};

/// Lines to show where nothing narrows them down.
const USUAL_LINES: u32 = 100;

/// Which lines of an instance are meant.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// Only so many of the last ones.
    pub(super) last: Option<u32>,
    /// Unix nanoseconds of the first one.
    pub(super) since: Option<u64>,
    /// First microsecond after the last one, as it is written.
    end: Option<String>,
    stream: Option<LogStream>,
    grep: Option<Regex>,
    invert: bool,
    /// Only what was written before the latest start.
    pub(super) previous: bool,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is meant.
    Shown,
    /// It is not.
    Skipped,
    /// It is too late, and so are those after it.
    Past,
}

/// A moment as the lines bear it.
fn stamp(moment: jiff::Timestamp) -> String {
    format!("{moment:.6}")
}

impl Selection {
    pub(crate) fn new(args: &args::Logs) -> Self {
        let all =
            args.since.is_some() || args.until.is_some() || args.grep.is_some() || args.previous;
        // Up to and with the microsecond that was named.
        let end = args.until.map(|until| {
            let after = until.checked_add(jiff::SignedDuration::from_micros(1));
            stamp(after.unwrap_or(until))
        });
        Self {
            last: args.lines.or((!all).then_some(USUAL_LINES)),
            since: args
                .since
                .map(|since| u64::try_from(since.as_nanosecond()).unwrap_or(0)),
            end,
            stream: args.stream,
            grep: args.grep.clone(),
            invert: args.invert_match,
            previous: args.previous,
        }
    }

    /// Whether every line of the log is meant, but for the number.
    pub(super) fn is_plain(&self) -> bool {
        self.since.is_none() && self.end.is_none() && self.stream.is_none() && self.grep.is_none()
    }

    /// The same for one instance: with `--previous` only what is older than its latest start.
    pub(crate) fn of(&self, record: Option<&InstanceRecord>) -> Self {
        let mut own = self.clone();
        if self.previous
            && let Some(start) = record.and_then(latest_start)
        {
            let start = jiff::Timestamp::from_nanosecond(start.into())
                .ok()
                .map(stamp);
            own.end = match (own.end, start) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        own
    }

    /// Whether a line is meant.
    pub(super) fn shows(&self, raw: &[u8]) -> bool {
        self.judge(raw) == Verdict::Shown
    }

    pub(super) fn judge(&self, raw: &[u8]) -> Verdict {
        if let (Some(end), Some(at)) = (&self.end, Parsed::time(raw))
            && at >= end.as_str()
        {
            return Verdict::Past;
        }
        if self.stream.is_none() && self.grep.is_none() {
            return Verdict::Shown;
        }
        let line = Parsed::of(raw);
        let stream = self
            .stream
            .is_none_or(|stream| line.err == (stream == LogStream::Err));
        let text = self
            .grep
            .as_ref()
            .is_none_or(|grep| grep.is_match(&line.text) != self.invert);
        match stream && text {
            true => Verdict::Shown,
            false => Verdict::Skipped,
        }
    }
}

/// When the latest start of an instance began, Unix time in nanoseconds. The shim
/// takes the time of the process before it reads any output, and a run before
/// has ended by then: so it parts the runs, unless the clock was set back in between.
/// What the hook before it wrote belongs to it as well: that is in the first step.
fn latest_start(record: &InstanceRecord) -> Option<u64> {
    let started_at = match &record.state {
        ProcessState::Running { started_at, .. } | ProcessState::Stopping { started_at, .. } => {
            *started_at
        }
        ProcessState::Terminated { exit: Some(exit) }
        | ProcessState::Failed {
            failure: Failure::Exit { exit },
        } => exit.started_at,
        // Nothing ran: all that is there is from before.
        _ => return None,
    };
    let before = record.steps.iter().filter(|time| {
        matches!(
            time.step,
            SpawnStep::PrepareEnvironment | SpawnStep::ApplyLimits | SpawnStep::Exec
        )
    });
    let took = before.map(|time| time.took_ns).sum();
    let begun = started_at.saturating_sub(took);
    // With a restart by permit that can be the microsecond that the last words of the run
    // before bear.
    let previous = record.previous_exit.iter();
    let ended = previous.filter(|exit| exit.generation.next() == record.generation);
    let after = ended.map(|exit| exit.ended_at.saturating_add(1_000)).max();
    Some(begun.max(after.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use blackhole_bus_schema::process::{ExitRecord, ExitResult, ExitStatus, StepTime};
    use clap::Parser;

    use super::*;

    fn selection(words: &[&str]) -> Selection {
        let all = ["blackhole", "logs"].iter().chain(words);
        match args::Cli::parse_from(all).command {
            args::Cmd::Logs(args) => Selection::new(&args),
            other => panic!("{other:?}"),
        }
    }

    fn line(at: &str, stream: &str, text: &str) -> Vec<u8> {
        format!("2026-11-22T23:05:{at}Z web.1 {stream} F {text}").into_bytes()
    }

    #[test]
    fn streams_and_patterns_narrow_down() {
        let only = selection(&["--stream", "err", "--grep", "^a.c$"]);
        let judge = |stream, text| only.judge(&line("30.000000", stream, text));
        assert_eq!(judge("err", "abc"), Verdict::Shown);
        assert_eq!(judge("out", "abc"), Verdict::Skipped);
        assert_eq!(judge("err", "abcd"), Verdict::Skipped);
        let not = selection(&["--grep", "web", "-v"]);
        assert_eq!(
            not.judge(&line("30.000000", "out", "x")),
            Verdict::Shown,
            "the text is meant"
        );
        assert_eq!(
            not.judge(&line("30.000000", "out", "a web")),
            Verdict::Skipped
        );
    }

    #[test]
    fn the_last_moment_belongs_to_it() {
        let until = selection(&["--until", "2026-11-22T23:05:30.5Z"]);
        assert_eq!(until.judge(&line("30.500000", "out", "x")), Verdict::Shown);
        assert_eq!(until.judge(&line("30.500001", "out", "x")), Verdict::Past);
        assert_eq!(until.judge(b"torn"), Verdict::Shown);
    }

    #[test]
    fn a_hundred_lines_where_nothing_else_is_said() {
        assert_eq!(selection(&[]).last, Some(100));
        assert_eq!(selection(&["--stream", "out"]).last, Some(100));
        assert_eq!(selection(&["--since", "1h"]).last, None);
        assert_eq!(selection(&["--grep", "x", "-n", "5"]).last, Some(5));
    }

    #[test]
    fn runs_are_parted_by_the_latest_start() {
        let previous = selection(&["--previous"]);
        let record = |state| InstanceRecord {
            instance: "web.1".parse().unwrap(),
            generation: blackhole_bus_schema::names::Generation(2),
            state,
            notify: Default::default(),
            steps: vec![],
            grant: None,
            adopted: false,
            lost_log_lines: 0,
            previous_exit: None,
            restarts: 0,
        };
        // 23:05:30.000001 and a bit: what has that microsecond is of the new run.
        let running = record(ProcessState::Running {
            pid: 1,
            started_at: 1_795_388_730_000_001_700,
        });
        let own = previous.of(Some(&running));
        let mut hooked = running.clone();
        let took = |step, took_ns| StepTime { step, took_ns };
        hooked.steps = vec![
            took(SpawnStep::PrepareEnvironment, 900_000_000),
            took(SpawnStep::Exec, 100_000_000),
            took(SpawnStep::Register, 5_000_000_000),
        ];
        assert_eq!(own.judge(&line("30.000000", "out", "x")), Verdict::Shown);
        assert_eq!(own.judge(&line("30.000001", "out", "x")), Verdict::Past);
        let own = previous.of(Some(&hooked));
        assert_eq!(own.judge(&line("29.000000", "out", "x")), Verdict::Shown);
        assert_eq!(own.judge(&line("29.000001", "out", "x")), Verdict::Past);
        let mut permitted = running.clone();
        let ended = |ended_at| ExitRecord {
            generation: blackhole_bus_schema::names::Generation(1),
            pid: 1,
            status: ExitStatus::Exited { code: 3 },
            result: ExitResult::ExitCode,
            started_at: 0,
            ended_at,
            killed_leftovers: 0,
        };
        permitted.previous_exit = Some(ended(1_795_388_730_000_001_000));
        let own = previous.of(Some(&permitted));
        assert_eq!(own.judge(&line("30.000001", "out", "x")), Verdict::Shown);
        assert_eq!(own.judge(&line("30.000002", "out", "x")), Verdict::Past);
        let never = previous.of(Some(&record(ProcessState::Spawn {})));
        assert_eq!(never.judge(&line("59.000000", "out", "x")), Verdict::Shown);
    }
}
