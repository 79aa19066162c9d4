//! What an idle shim does once before anybody asks for it: a start on paper. A forked process
//! gets its own copy of each page when it first writes to it, and the code that it needs has to
//! come into the processor's caches; that is a tenth of a millisecond that a start need not wait for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use blackhole_bus_schema::limits::{CgroupDir, JoinMethod, LimitGrant};
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{LogSpec, ProcessSettings, StopSpec};

use super::exec::Strings;
use super::passed::Passed;
use super::protocol::{self, FirstRequest, MAX_SPAWN_FRAME, SpawnFrame, SpawnRequest};
use super::{birth, prepare};

/// About as many as a service has; each has its own string.
const VARIABLES: u32 = 16;

/// Bytes of a usual specification.
const SPECIFICATION: usize = 1500;

/// A request like those that come, as it would come.
#[derive(Debug)]
pub(super) struct Rehearsal {
    frame: Vec<u8>,
}

impl Rehearsal {
    /// `None` cannot happen; then nothing is rehearsed.
    pub(super) fn new() -> Option<Self> {
        let cgroup = |n: u32| CgroupDir {
            path: format!("/sys/fs/cgroup/controller{n}/blackhole/rehearsal.1"),
            join: JoinMethod::V1Tasks,
        };
        let request = SpawnRequest {
            instance: "rehearsal.1".parse().ok()?,
            generation: Generation(1),
            instance_dir: PathBuf::from("/nonexistent/instances/rehearsal.1"),
            socket: PathBuf::from("/nonexistent/i/0123456789abcdef"),
            command: vec!["/nonexistent/rehearsal".to_owned(); 3],
            env: variables(),
            working_dir: None,
            user: None,
            group: None,
            nofile: Some((1024, 4096)),
            success_codes: vec![0],
            stop: StopSpec::default(),
            logs: LogSpec::default(),
            grant: Some(LimitGrant {
                version: None,
                cgroups: (0..8).map(cgroup).collect(),
                kill_cgroup: None,
                freezer_cgroup: None,
                oom_file: None,
                oom_score_adj: Some(0),
                report: Vec::new(),
            }),
            spec: vec![0; SPECIFICATION],
            permit: None,
            settings: ProcessSettings::default(),
            watchdog_us: None,
        };
        let mut frame = Vec::new();
        protocol::encode(&SpawnFrame::of(&request), MAX_SPAWN_FRAME, &mut frame).ok()?;
        Some(Self { frame })
    }

    /// Takes the request in and makes everything for it that has no name outside this process.
    pub(super) fn run(&self) {
        birth::set_aside();
        let mut frame = self.frame.clone();
        let taken = protocol::take::<FirstRequest>(&mut frame, MAX_SPAWN_FRAME);
        let Ok(Some(first)) = taken else { return };
        let Some(request) = first.request.into_spawn() else {
            return;
        };
        if let Ok(successor) = prepare::successor(&request, None, &mut Passed::default()) {
            let _strings = Strings::of(&successor.plan);
            prepare::set_pipes_aside(successor);
        }
    }
}

fn variables() -> BTreeMap<String, String> {
    let one = |n| {
        (
            format!("REHEARSED_{n}"),
            "a value of usual length".to_owned(),
        )
    };
    (0..VARIABLES).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rehearsed_is_what_comes() {
        let mut frame = Rehearsal::new().unwrap().frame;
        let first: Option<FirstRequest> = protocol::take(&mut frame, MAX_SPAWN_FRAME).unwrap();
        let request = first.unwrap().request.into_spawn().unwrap();
        let successor = prepare::successor(&request, None, &mut Passed::default()).unwrap();
        assert_eq!(successor.plan.join.len(), 8);
        assert_eq!(successor.plan.environment.len(), 16);
    }
}
