//! As whom a child runs, and which file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::process::{SpawnFailure, SpawnStep};

use super::exec::Identity;
use super::hint::Who;
use super::prepare::{c_string, errno, failure};
use super::protocol::SpawnRequest;
use super::sys;

/// Used where the environment of a service has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The user and groups to run as, and what belongs to them in the environment.
pub(super) fn identity(
    request: &SpawnRequest,
    environment: &mut BTreeMap<String, String>,
) -> Result<(Option<Identity>, Who), SpawnFailure> {
    let step = SpawnStep::ApplyLimits;
    let own = Who::own();
    let more = &request.settings.groups;
    if request.user.is_none() && request.group.is_none() && more.is_empty() {
        return Ok((None, own));
    }
    let group = match &request.group {
        None => None,
        Some(name) => Some(group(name, "group")?),
    };
    let mut who = match &request.user {
        None => Who {
            uid: own.uid,
            gid: group.unwrap_or(own.gid),
            groups: vec![group.unwrap_or(own.gid)],
        },
        Some(name) => {
            let operation = || format!("look up user {name}");
            let found = sys::user(&c_string(name.as_str(), step, operation)?)
                .map_err(|error| failure(step, operation(), errno(&error), ""))?;
            match (found, name.parse::<u32>(), group) {
                (Some(user), _, group) => {
                    let gid = group.unwrap_or(user.gid);
                    for (variable, value) in [
                        ("USER", &user.name),
                        ("LOGNAME", &user.name),
                        ("HOME", &user.home),
                    ] {
                        let value = value.to_string_lossy().into_owned();
                        environment.entry(variable.to_owned()).or_insert(value);
                    }
                    Who {
                        uid: user.uid,
                        gid,
                        groups: sys::groups_of(&user.name, gid),
                    }
                }
                (None, Ok(uid), Some(gid)) => Who {
                    uid,
                    gid,
                    groups: vec![gid],
                },
                (None, Ok(_), None) => {
                    let hint = "no user has this number: name a `group` too";
                    return Err(failure(step, operation(), 0, hint));
                }
                (None, Err(_), _) => {
                    return Err(failure(
                        step,
                        operation(),
                        0,
                        "user unknown: create it or correct `user`",
                    ));
                }
            }
        }
    };
    for name in more {
        let gid = self::group(name, "groups")?;
        if !who.groups.contains(&gid) {
            who.groups.push(gid);
        }
    }
    let same = who.uid == own.uid && who.gid == own.gid && more.is_empty();
    if same && (own.uid != 0 || request.user.is_none()) {
        return Ok((None, own));
    }
    // Who is not root may not set groups, and needs not for what it is already.
    let needed = own.uid == 0 || who.uid != own.uid || !more.is_empty();
    let groups = needed.then(|| who.groups.clone());
    Ok((
        Some(Identity {
            uid: who.uid,
            gid: who.gid,
            groups,
        }),
        who,
    ))
}

/// The number of a group that `key` names.
fn group(name: &str, key: &str) -> Result<u32, SpawnFailure> {
    let step = SpawnStep::ApplyLimits;
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let operation = || format!("look up group {name}");
    match sys::group(&c_string(name, step, operation)?) {
        Ok(Some(gid)) => Ok(gid),
        Ok(None) => {
            let hint = format!("group unknown: create it or correct `{key}`");
            Err(failure(step, operation(), 0, hint))
        }
        Err(error) => Err(failure(step, operation(), errno(&error), "")),
    }
}

/// The file to execute.
pub(super) fn program(
    command: &[String],
    environment: &BTreeMap<String, String>,
    who: &Who,
) -> Result<PathBuf, SpawnFailure> {
    let step = SpawnStep::Exec;
    let Some(name) = command.first().filter(|name| !name.is_empty()) else {
        return Err(failure(step, "exec nothing", 0, "the command is empty"));
    };
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path = environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let (mut doubtful, mut forbidden) = (None, None);
    for dir in path.split(':').filter(|dir| dir.starts_with('/')) {
        let candidate = Path::new(dir).join(OsStr::new(name));
        match fs::metadata(&candidate) {
            Ok(meta) if meta.is_file() && who.may_execute(&meta) => {
                if who.may_reach(&candidate) {
                    return Ok(candidate);
                }
                // By the modes of its directories; only execve(2) knows access lists.
                doubtful = doubtful.or(Some(candidate));
            }
            Ok(meta) if meta.is_file() => forbidden = Some(candidate),
            _ => {}
        }
    }
    if let Some(candidate) = doubtful {
        return Ok(candidate);
    }
    Err(match forbidden {
        Some(file) => {
            let hint = super::hint::exec(&file, libc::EACCES, who);
            failure(step, format!("exec {}", file.display()), libc::EACCES, hint)
        }
        None => {
            let hint = format!("not found in PATH ({path}): install it or give its absolute path");
            failure(step, format!("exec {name}"), libc::ENOENT, hint)
        }
    })
}
