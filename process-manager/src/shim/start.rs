//! The spawn itself: prepare, make the child, tell how it went and how long each step took.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::dirs::unix_now_ns;
use blackhole_bus_schema::process::{SpawnFailure, SpawnStep, StepTime};
use rustix::process::{Pid, WaitOptions};

use super::exec::{self, Plan, Report, Step};
use super::hint::{self, Who};
use super::prepare::{self, Prepared, failure};
use super::protocol::{SpawnRequest, Started};
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
pub(crate) fn start(request: &SpawnRequest, begun: u64) -> Result<Running, SpawnFailure> {
    let mut prepared = prepare::prepare(request)?;
    let warnings = std::mem::take(&mut prepared.warnings);
    let (pid, started) = run(request, &prepared.plan, &prepared.who, begun, warnings)?;
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
    mut warnings: Vec<String>,
) -> Result<(Pid, Started), SpawnFailure> {
    let grant = request.grant.as_ref();
    let ready = exec::monotonic_ns();
    let launched = match exec::launch(plan) {
        Ok(launched) => launched,
        Err(error) => return Err(not_born(request, plan, error.raw_os_error().unwrap_or(0))),
    };
    let done = exec::monotonic_ns();
    let started_at = unix_now_ns();
    let (pid, report) = (launched.pid, launched.report);
    if report.errno != 0 || report.step != Step::Exec {
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        return Err(explain(request, plan, who, &report));
    }
    if let Some(score) = grant.and_then(|grant| grant.oom_score_adj)
        && report.oom_errno != 0
    {
        let error = std::io::Error::from_raw_os_error(report.oom_errno);
        warnings.push(format!("OOM score {score} not set: {error}"));
    }
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
            step(SpawnStep::ApplyLimits, ready, report.limits_ns),
            step(SpawnStep::Exec, report.limits_ns, done),
        ],
        warnings,
    };
    Ok((pid, started))
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
                prepare::CGROUP_HINT,
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
                prepare::CGROUP_HINT,
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
