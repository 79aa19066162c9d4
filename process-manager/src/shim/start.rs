//! The spawn itself: prepare, make the child, tell how it went and how long each step took.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::dirs::unix_now_ns;
use blackhole_bus_schema::process::{Rlimit, SpawnFailure, SpawnStep, StepTime, capability_name};
use rustix::process::{Pid, WaitOptions};

use super::cgroups;
use super::exec::{self, Launched, Plan};
use super::hint::{self, Who};
use super::passed::Passed;
use super::prepare::{self, Prepared, failure};
use super::protocol::{SpawnRequest, Started};
use super::report::{Report, Step};
use super::standby::StandBy;
use super::sys;
use super::tree;

/// A service that runs, and what its shim holds of it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: Pid,
    pub(crate) started: Started,
    pub(crate) prepared: Prepared,
    /// The OOM counter of its cgroup before it was there.
    pub(crate) oom_before: Option<u64>,
}

/// Starts the service. The caller holds the instance's lock; `begun` is when the
/// request was taken up, in monotonic nanoseconds.
/// What was kept for the instance is left in `kept` where it does not start.
pub(crate) fn start(
    request: &SpawnRequest,
    begun: u64,
    kept: &mut Option<Passed>,
) -> Result<Running, SpawnFailure> {
    let mut prepared = prepare::prepare(request, kept)?;
    let warnings = std::mem::take(&mut prepared.warnings);
    let ran = run(request, &prepared.plan, &prepared.who, begun, warnings);
    let (pid, started) = match ran {
        Ok(ran) => ran,
        Err(failure) => {
            *kept = Some(prepared.passed);
            return Err(failure);
        }
    };
    // Of its life so far, which is no longer than this function's last lines.
    let grant = request.grant.as_ref();
    let oom_before = grant.and_then(|grant| tree::oom_kills(grant.oom_file.as_ref()?));
    Ok(Running {
        pid,
        started,
        prepared,
        oom_before,
    })
}

/// Makes the child of a plan, and tells how it went.
pub(crate) fn run(
    request: &SpawnRequest,
    plan: &Plan,
    who: &Who,
    begun: u64,
    warnings: Vec<String>,
) -> Result<(Pid, Started), SpawnFailure> {
    let ready = exec::monotonic_ns();
    let launched = match exec::launch(plan) {
        Ok(launched) => launched,
        Err(error) => return Err(not_born(request, plan, error.raw_os_error().unwrap_or(0))),
    };
    let report = launched.report;
    if report.errno != 0 || report.step != Step::Exec {
        let _ = rustix::process::waitpid(Some(launched.pid), WaitOptions::empty());
        return Err(explain(request, plan, who, &report));
    }
    let gives_way = !plan.handlers;
    Ok(runs(request, &launched, begun, ready, warnings, gives_way))
}

/// The same by a child that waits for it. `None` where that is of no use any more:
/// whatever is wrong shows when another one is made.
pub(crate) fn by_standby(
    request: &SpawnRequest,
    standby: StandBy,
    begun: u64,
) -> Option<(Pid, Started)> {
    let ready = exec::monotonic_ns();
    let launched = standby.go().ok()?;
    Some(runs(request, &launched, begun, ready, Vec::new(), true))
}

/// A child has become the service.
fn runs(
    request: &SpawnRequest,
    launched: &Launched,
    begun: u64,
    ready: u64,
    mut warnings: Vec<String>,
    gives_way: bool,
) -> (Pid, Started) {
    let done = exec::monotonic_ns();
    let started_at = unix_now_ns();
    if gives_way {
        // The child has woken this process in the midst of execve(2).
        sys::give_way();
    }
    let (pid, report) = (launched.pid, launched.report);
    let grant = request.grant.as_ref();
    if let Some(score) = grant.and_then(|grant| grant.oom_score_adj)
        && report.oom_errno != 0
    {
        let error = std::io::Error::from_raw_os_error(report.oom_errno);
        warnings.push(format!("OOM score {score} not set: {error}"));
    }
    // One that waited had its limits long ago.
    let limits_ns = report.limits_ns.max(ready);
    let step = |step, from: u64, to: u64| StepTime {
        step,
        took_ns: to.saturating_sub(from),
    };
    let raw = pid.as_raw_nonzero().get();
    let started = Started {
        pid: raw.unsigned_abs(),
        start_ticks: tree::stat(raw).map_or(0, |stat| stat.start_ticks),
        started_at,
        shim_pid: std::process::id(),
        steps: vec![
            step(SpawnStep::PrepareEnvironment, begun, ready),
            step(SpawnStep::ApplyLimits, ready, limits_ns),
            step(SpawnStep::Exec, limits_ns, done),
        ],
        warnings,
    };
    (pid, started)
}

/// There is no child.
fn not_born(request: &SpawnRequest, plan: &Plan, errno: i32) -> SpawnFailure {
    let cgroup = request.grant.iter().flat_map(|grant| &grant.cgroups);
    let v2 = cgroup
        .rev()
        .find(|cgroup| cgroup.join == blackhole_bus_schema::limits::JoinMethod::V2);
    match (errno, v2, &plan.born_in) {
        (libc::EAGAIN, _, _) => {
            let hint =
                "the limit of processes is reached: raise pids, or the user's or host's limit";
            failure(SpawnStep::Exec, "fork", errno, hint)
        }
        (libc::ENOMEM, _, _) => failure(SpawnStep::Exec, "fork", errno, "not enough memory"),
        (_, Some(cgroup), Some(_)) => {
            let operation = format!("join cgroup {}", cgroup.path);
            failure(
                SpawnStep::ApplyLimits,
                operation,
                errno,
                cgroups::CGROUP_HINT,
            )
        }
        _ => failure(SpawnStep::Exec, "fork", errno, ""),
    }
}

/// The child ended before it was the service.
fn explain(request: &SpawnRequest, plan: &Plan, who: &Who, report: &Report) -> SpawnFailure {
    let path = |text: &std::ffi::CString| PathBuf::from(OsStr::from_bytes(text.as_bytes()));
    let limits = SpawnStep::ApplyLimits;
    let errno = report.errno;
    let not_root =
        "only root can run a service as another user: run Blackhole as root or leave `user` out";
    match report.step {
        Step::Born | Step::Orphaned if errno == 0 => failure(
            limits,
            "prepare the process",
            0,
            "it was killed before it could start: is memory_mb too small?",
        ),
        Step::Born | Step::Orphaned | Step::Session | Step::Output | Step::DeathSignal => {
            failure(limits, "prepare the process", errno, "")
        }
        Step::Join => {
            let file = plan
                .join
                .iter()
                .chain(&plan.born_in_procs)
                .nth(report.index);
            let file = file.map(&path).unwrap_or_default();
            failure(
                limits,
                format!("join cgroup {}", file.display()),
                errno,
                cgroups::CGROUP_HINT,
            )
        }
        Step::OpenFiles => {
            let (soft, hard) = plan.nofile.unwrap_or_default();
            let hint = "open_files is above the hard limit that Blackhole runs with";
            failure(
                limits,
                format!("limit open files to {soft}:{hard}"),
                errno,
                hint,
            )
        }
        Step::Rlimit => {
            let (number, soft, hard) = plan.rlimits.get(report.index).copied().unwrap_or_default();
            let limit = Rlimit::ALL.iter().find(|row| row.2 == number);
            let name = limit.map_or("?", |row| row.0);
            let text = |value: u64| match value {
                u64::MAX => "unlimited".to_owned(),
                value => value.to_string(),
            };
            let hint = match (errno, name) {
                (libc::EPERM, "nofile") => {
                    "above the hard limit that Blackhole runs with, or above fs.nr_open"
                }
                (libc::EPERM, _) => {
                    "above the hard limit that Blackhole runs with: lower it, or run Blackhole as root"
                }
                _ => "",
            };
            let operation = format!("limit {name} to {}:{}", text(soft), text(hard));
            failure(limits, operation, errno, hint)
        }
        Step::Nice => failure(
            limits,
            format!("set the niceness to {}", plan.nice.unwrap_or_default()),
            errno,
            "only root can go below 0, others only as far as their limit `nice` lets them",
        ),
        Step::Bounding | Step::Ambient | Step::Capabilities | Step::KeepCapabilities => {
            capabilities(report)
        }
        Step::Passed => failure(
            limits,
            format!("pass on descriptor {}", report.index),
            errno,
            "there are more of them than the limit of open files lets the service have",
        ),
        Step::NoNewPrivs => failure(limits, "set no_new_privs", errno, ""),
        Step::Stdin => {
            let file = plan.stdin.as_ref().map(&path).unwrap_or_default();
            let operation = format!("open {} as standard input", file.display());
            let hint = hint::input(&file, errno, who);
            failure(SpawnStep::PrepareEnvironment, operation, errno, hint)
        }
        Step::Groups => failure(
            limits,
            format!("set the groups of user {}", who.uid),
            errno,
            not_root,
        ),
        Step::Gid => failure(limits, format!("become group {}", who.gid), errno, not_root),
        Step::Uid => failure(limits, format!("become user {}", who.uid), errno, not_root),
        Step::Directory => {
            let dir = path(&plan.directory);
            let hint = hint::directory(&dir, errno, who);
            failure(
                SpawnStep::PrepareEnvironment,
                format!("change to {}", dir.display()),
                errno,
                hint,
            )
        }
        Step::Exec => {
            let program = path(&plan.program);
            // A relative one is looked for from the working directory.
            let dir = Path::new(request.working_dir.as_deref().unwrap_or("/"));
            let hint = hint::exec(&dir.join(&program), errno, who);
            failure(
                SpawnStep::Exec,
                format!("exec {}", program.display()),
                errno,
                hint,
            )
        }
    }
}

/// Capabilities could not be as asked.
fn capabilities(report: &Report) -> SpawnFailure {
    let number = u32::try_from(report.index).unwrap_or(u32::MAX);
    let name = capability_name(number).map_or_else(|| number.to_string(), str::to_owned);
    let operation = match report.step {
        Step::Bounding => format!("drop capability {name}"),
        Step::Ambient => format!("keep capability {name}"),
        _ => "set the capabilities".to_owned(),
    };
    let hint = match (report.step, report.errno) {
        (Step::Bounding, libc::EPERM) => {
            "only root (who has the capability setpcap) can: run Blackhole as root or leave `capabilities` out"
        }
        (Step::Ambient, libc::EPERM) => {
            "Blackhole itself does not have it: run it as root, or with this capability"
        }
        (Step::Ambient, libc::EINVAL) => "this kernel does not know it",
        _ => "",
    };
    failure(SpawnStep::ApplyLimits, operation, report.errno, hint)
}
