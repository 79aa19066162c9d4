//! Whom a service runs as, and what that user may do.

use std::io;

use blackhole_bus_schema::config::ServiceConfig;
use blackhole_process_manager::shim::hint::Who;
use blackhole_process_manager::users;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::subject::Subject;
use super::{Check, fail, ok};

/// Whom a service runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runner {
    pub(super) who: Who,
    /// It is not who Blackhole runs as.
    other: bool,
}

/// A key that names nobody, and what is wrong with it.
struct Unknown {
    keys: Vec<String>,
    text: String,
    advice: String,
}

impl Unknown {
    fn new(keys: &[&str], error: &users::UserError) -> Self {
        Self {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            text: error.to_string(),
            advice: format!("create it, or correct `{}`", keys[0]),
        }
    }
}

impl Runner {
    /// Looks up what a service asks for.
    fn find(service: &ServiceConfig) -> Result<Self, Unknown> {
        let own = Who::own();
        let mut who = own.clone();
        if let Some(user) = &service.user {
            let found = users::find(Some(user), None);
            let found = found.map_err(|error| Unknown::new(&["user"], &error))?;
            let Some(found) = found else {
                return Ok(Self { who, other: false });
            };
            if found.login.is_none() && service.group.is_none() {
                return Err(Unknown {
                    keys: vec!["user".to_owned()],
                    text: format!("no user has the number {user}"),
                    advice: "name a `group` too: it cannot be looked up".to_owned(),
                });
            }
            who.uid = found.uid.unwrap_or(own.uid);
            who.gid = found.gid;
            who.groups = found.groups;
        }
        if let Some(group) = &service.group {
            let found = users::find(service.user.as_deref(), Some(group));
            let found = found.map_err(|error| Unknown::new(&["group"], &error))?;
            if let Some(found) = found {
                who.gid = found.gid;
                who.groups = found.groups;
            }
        }
        for (index, group) in service.settings.groups.iter().enumerate() {
            let found = users::find(None, Some(group));
            let keys = ["groups", &index.to_string()];
            let found = found.map_err(|error| Unknown::new(&keys, &error))?;
            who.groups.extend(found.map(|found| found.gid));
        }
        let other = who.uid != own.uid || who.gid != own.gid || !service.settings.groups.is_empty();
        Ok(Self { who, other })
    }

    /// Does something with that user's rights, in a thread of its own: only the
    /// kernel knows of access lists, mounts and security modules.
    ///
    /// # Errors
    /// When this process may not become that user.
    pub(super) fn try_as<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if !self.other {
            return Ok(work());
        }
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let groups: Vec<Gid> = self
                    .who
                    .groups
                    .iter()
                    .map(|gid| Gid::from_raw(*gid))
                    .collect();
                let (uid, gid) = (Uid::from_raw(self.who.uid), Gid::from_raw(self.who.gid));
                // These change the calling thread alone, and it ends here.
                set_thread_groups(&groups)?;
                set_thread_res_gid(gid, gid, gid)?;
                set_thread_res_uid(uid, uid, uid)?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the check failed")))
        })
    }
}

/// Whether the users and groups exist and can be had; whom each service runs as
/// where they do.
pub(super) fn users(subject: &Subject<'_>) -> (Vec<Check>, Vec<(String, Runner)>) {
    const WHAT: &str = "users and groups";
    let root = rustix::process::geteuid().is_root();
    let (mut checks, mut runners) = (Vec::new(), Vec::new());
    let mut named = 0;
    for (name, service) in &subject.document.config.services {
        let name = name.as_str();
        named += usize::from(
            service.user.is_some()
                || service.group.is_some()
                || !service.settings.groups.is_empty(),
        );
        match Runner::find(service) {
            Ok(runner) if runner.other && !root => {
                let key = match (&service.user, &service.group) {
                    (Some(_), _) => "user",
                    (None, Some(_)) => "group",
                    (None, None) => "groups",
                };
                let found = format!(
                    "user {} may not start it as user {}, group {}",
                    rustix::process::geteuid().as_raw(),
                    runner.who.uid,
                    runner.who.gid
                );
                let advice = format!("run Blackhole as root, or leave `{key}` out");
                checks.push(fail(WHAT, found, advice).at(subject.of_service(name, &[key])));
            }
            Ok(runner) => runners.push((name.to_owned(), runner)),
            Err(unknown) => {
                let keys: Vec<&str> = unknown.keys.iter().map(String::as_str).collect();
                let at = subject.of_service(name, &keys);
                checks.push(fail(WHAT, unknown.text, unknown.advice).at(at));
            }
        }
    }
    if checks.is_empty() && named > 0 {
        checks.push(ok(WHAT, "all are known"));
    }
    (checks, runners)
}
