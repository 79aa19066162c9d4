//! What is right in a configuration and probably not meant.

use std::net::{IpAddr, SocketAddr};

use super::model::{Condition, Document, RestartMode, ServiceConfig};
use crate::health::ProbeCheck;

/// Fewest processes that a service must be allowed for its successor to wait as one of them.
pub const STANDBY_PIDS: u32 = 32;

/// Something to think about again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The keys that lead to it; see [`super::Places::of`] for their place.
    pub keys: Vec<String>,
    /// What it means.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Document {
    /// All there is to note, service by service. What depends on the host is not among it.
    pub fn notes(&self) -> Vec<Note> {
        let mut notes = Vec::new();
        let services = &self.config.services;
        if services.is_empty() {
            notes.push(Note {
                keys: vec!["services".to_owned()],
                message: "there are no services: nothing would run".to_owned(),
                hint: "write services: {web: {command: [/usr/bin/web]}}".to_owned(),
            });
        }
        for (name, service) in services {
            let mut note = |keys: &[&str], message: String, hint: &str| {
                let keys = [&["services", name.as_str()], keys].concat();
                notes.push(Note {
                    keys: keys.into_iter().map(str::to_owned).collect(),
                    message,
                    hint: hint.to_owned(),
                });
            };
            if let Some(why) = service.standby_in_vain() {
                note(
                    &["standby"],
                    format!("has no effect: {why}"),
                    "leave it out, or change that",
                );
            }
            for (kind, socket) in own_sockets_probed(service) {
                note(
                    &["health", kind, "tcp"],
                    format!(
                        "connects to its own socket {socket}, which takes connections also while \
                         the service is dead or hangs: it always passes"
                    ),
                    "ask the service itself, by http, exec, rpc or notify",
                );
            }
        }
        notes
    }
}

impl ServiceConfig {
    /// Why `standby: true` has no effect; `None` where it has, or is not asked for.
    pub fn standby_in_vain(&self) -> Option<String> {
        if !self.settings.standby {
            return None;
        }
        let hooks = &self.settings.hooks;
        let hook = [
            ("before_start", &hooks.before_start),
            ("after_exit", &hooks.after_exit),
        ];
        let hook = hook.into_iter().find(|(_, hook)| hook.is_some());
        let waits_for = self
            .depends_on
            .iter()
            .find(|(_, on)| on.condition != Condition::Completed);
        if self.oneshot {
            Some("a one-shot is restarted by the supervisor alone".to_owned())
        } else if self.restart_mode == RestartMode::Never {
            Some("its restart policy never restarts it".to_owned())
        } else if let Some((key, _)) = hook {
            Some(format!("its hook {key} comes before each restart"))
        } else if let Some((on, _)) = waits_for {
            Some(format!(
                "it depends on {on}, which is looked at before each restart"
            ))
        } else {
            let few = self.limits.pids.filter(|pids| *pids < STANDBY_PIDS)?;
            Some(format!(
                "it may have {few} processes (resources.pids), and a successor waits only where \
                 {STANDBY_PIDS} are allowed"
            ))
        }
    }
}

/// The probes that connect to one of the service's own sockets, and its name.
fn own_sockets_probed(service: &ServiceConfig) -> Vec<(&'static str, &str)> {
    let probes = &service.probes;
    let all = [
        ("startup", &probes.startup),
        ("liveness", &probes.liveness),
        ("readiness", &probes.readiness),
    ];
    let found = all.into_iter().filter_map(|(kind, probe)| {
        let ProbeCheck::Tcp(target) = &probe.as_ref()?.check else {
            return None;
        };
        let mut sockets = service.settings.sockets.iter();
        let (name, _) = sockets.find(|(_, socket)| leads_to(target, &socket.listen))?;
        Some((kind, name.as_str()))
    });
    found.collect()
}

/// Whether a connection to HOST:PORT reaches a socket.
fn leads_to(target: &str, listen: &str) -> bool {
    let (Some((host, port)), Ok(listen)) = (target.rsplit_once(':'), listen.parse::<SocketAddr>())
    else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let same_host = match host.parse::<IpAddr>() {
        Ok(ip) => ip == listen.ip() || listen.ip().is_unspecified() || ip.is_unspecified(),
        Err(_) => host != "localhost" || listen.ip().is_loopback() || listen.ip().is_unspecified(),
    };
    port.parse() == Ok(listen.port()) && same_host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(text: &str) -> Vec<String> {
        let document = Document::parse(text, "test").unwrap();
        let notes = document.notes().into_iter();
        notes
            .map(|note| format!("{}: {}", note.keys.join("."), note.message))
            .collect()
    }

    #[test]
    fn an_empty_configuration_is_noted() {
        for text in [
            "",
            "runtime: {}",
            "services:",
            "services: {}",
            "# nothing\n",
        ] {
            assert_eq!(
                notes(text),
                ["services: there are no services: nothing would run"]
            );
        }
        assert!(notes("services: {a: {command: [x]}}").is_empty());
    }

    #[test]
    fn a_standby_that_would_never_be_used_is_noted_with_the_reason() {
        for (more, why) in [
            ("", None),
            ("hooks: {before_stop: [x], after_start: [x]}", None),
            ("resources: {pids: 32}", None),
            ("depends_on: {b: completed}", None),
            ("restart: {policy: on-failure}", None),
            ("oneshot: true", Some("a one-shot")),
            ("restart: {policy: never}", Some("its restart policy")),
            ("hooks: {before_start: [x]}", Some("its hook before_start")),
            ("hooks: {after_exit: [x]}", Some("its hook after_exit")),
            ("depends_on: {b: started}", Some("it depends on b")),
            ("resources: {pids: 31}", Some("it may have 31 processes")),
        ] {
            let text = format!(
                "services: {{a: {{command: [x], standby: true, {more}}}, b: {{command: [x], oneshot: true}}}}"
            );
            let found = notes(&text);
            match why {
                None => assert!(found.is_empty(), "{more}: {found:?}"),
                Some(why) => {
                    assert_eq!(found.len(), 1, "{more}: {found:?}");
                    let begin = format!("services.a.standby: has no effect: {why}");
                    assert!(found[0].starts_with(&begin), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn a_tcp_probe_of_its_own_socket_is_noted() {
        for (target, listen, noted) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("[::1]:80", "[::1]:80", true),
            ("localhost:80", "127.0.0.1:80", true),
            ("shop.local:80", "10.0.0.1:80", true),
            ("localhost:80", "10.0.0.1:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "/run/web.sock", false),
        ] {
            let text = format!(
                "services: {{a: {{command: [x], sockets: {{http: \"{listen}\"}}, \
                 health: {{liveness: {{tcp: \"{target}\"}}}}}}}}"
            );
            let found = notes(&text);
            assert_eq!(!found.is_empty(), noted, "{target} {listen}: {found:?}");
            if noted {
                let begin = "services.a.health.liveness.tcp: connects to its own socket http";
                assert!(found[0].starts_with(begin), "{found:?}");
            }
        }
    }
}
