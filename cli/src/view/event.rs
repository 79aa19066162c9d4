//! Events: one line each, for people and for programs.

use blackhole_bus_schema::bus::Received;
use blackhole_bus_schema::component::{Bye, Heartbeat, Hello};
use blackhole_bus_schema::health::{ProbeKind, ProbeResult};
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{
    Failure, ProcessChanged, ProcessNotified, ProcessState, StateName,
};
use blackhole_bus_schema::registry::RegistryChanged;
use blackhole_bus_schema::resource::{OomKilled, UsageTick};
use blackhole_bus_schema::supervision::{Phase, SupervisionChanged};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::human;
use crate::out::{Style, Tone};
use crate::view::service::exit_words;

/// An event as a document's item. The field names are part of the interface.
#[derive(Debug, Clone, Serialize)]
pub struct EventItem<'a> {
    /// When it was published, RFC 3339 in UTC.
    pub at: String,
    /// Who published it.
    pub component: &'a str,
    /// Which start of it.
    pub incarnation: u64,
    /// Its topic.
    pub topic: &'a str,
    /// Its number on the topic.
    pub seq: u64,
    /// Which kind of body.
    pub kind: &'a str,
    /// Its id.
    pub id: String,
    /// The message that led to it.
    pub cause: Option<String>,
    /// The body.
    pub body: Value,
}

/// An event for a program.
pub fn item(event: &Received) -> EventItem<'_> {
    let envelope = &event.envelope;
    EventItem {
        at: human::timestamp(envelope.at),
        component: &envelope.source.component,
        incarnation: envelope.source.incarnation,
        topic: event.topic.as_str(),
        seq: envelope.seq,
        kind: &envelope.kind,
        id: envelope.id.to_string(),
        cause: envelope.cause.map(|id| id.to_string()),
        body: json(&envelope.body.tree()),
    }
}

/// A MessagePack value as JSON: bytes become text, keys become strings.
pub fn json(value: &rmpv::Value) -> Value {
    match value {
        rmpv::Value::Nil => Value::Null,
        rmpv::Value::Boolean(value) => Value::Bool(*value),
        rmpv::Value::Integer(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => Value::Null,
        },
        rmpv::Value::F32(number) => f64::from(*number).into(),
        rmpv::Value::F64(number) => (*number).into(),
        rmpv::Value::String(text) => String::from_utf8_lossy(text.as_bytes()).into(),
        rmpv::Value::Binary(bytes) | rmpv::Value::Ext(_, bytes) => {
            String::from_utf8_lossy(bytes).into()
        }
        rmpv::Value::Array(items) => items.iter().map(json).collect(),
        rmpv::Value::Map(fields) => {
            let text = |key: &rmpv::Value| match json(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(
                fields
                    .iter()
                    .map(|(key, value)| (text(key), json(value)))
                    .collect::<Map<_, _>>(),
            )
        }
    }
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whom it is about: an instance or a component.
    pub about: String,
    /// The instance, where it is about one.
    pub instance: Option<InstanceName>,
    /// What happened.
    pub text: String,
    /// How much it matters.
    pub tone: Tone,
    /// It comes each second, or is no news: shown only when asked for.
    pub noise: bool,
}

fn told(about: &InstanceName, tone: Tone, text: impl Into<String>) -> Told {
    Told {
        about: about.to_string(),
        instance: Some(about.clone()),
        text: text.into(),
        tone,
        noise: false,
    }
}

fn of_component(about: &str, tone: Tone, text: impl Into<String>) -> Told {
    Told {
        about: about.to_owned(),
        instance: None,
        text: text.into(),
        tone,
        noise: false,
    }
}

/// Puts an event into words. What is not known here is named by its kind.
pub fn tell(event: &Received) -> Told {
    try_tell(event).unwrap_or_else(|| {
        of_component(
            &event.envelope.source.component,
            Tone::Dim,
            format!("{} on {}", event.kind(), event.topic),
        )
    })
}

fn try_tell(event: &Received) -> Option<Told> {
    let source = &event.envelope.source.component;
    Some(match event.kind() {
        ProcessChanged::KIND => changed(&event.parse().ok()?),
        ProcessNotified::KIND => notified(&event.parse().ok()?),
        // One that somebody's question led to is no news, but an earlier one again.
        ProbeResult::KIND => Told {
            noise: event.envelope.cause.is_some(),
            ..probe(&event.parse().ok()?)
        },
        SupervisionChanged::KIND => supervision(&event.parse().ok()?),
        RegistryChanged::KIND => registry(&event.parse().ok()?),
        OomKilled::KIND => {
            let kill: OomKilled = event.parse().ok()?;
            let limit = kill.memory_limit_bytes.map_or_else(String::new, |limit| {
                format!(" at its limit of {}", human::bytes(limit))
            });
            told(
                &kill.instance,
                Tone::Bad,
                format!("out of memory{limit}: the kernel killed a process of it"),
            )
        }
        UsageTick::KIND => {
            let tick: UsageTick = event.parse().ok()?;
            let text = format!("usage of {}", human::count(tick.usage.len(), "instance"));
            Told {
                noise: true,
                ..of_component(source, Tone::Dim, text)
            }
        }
        Heartbeat::KIND => Told {
            noise: true,
            ..of_component(source, Tone::Dim, "heartbeat")
        },
        Hello::KIND => {
            let hello: Hello = event.parse().ok()?;
            of_component(
                source,
                Tone::Good,
                format!(
                    "started: pid {}, incarnation {}",
                    hello.info.pid, hello.info.incarnation
                ),
            )
        }
        Bye::KIND => {
            let bye: Bye = event.parse().ok()?;
            of_component(
                source,
                Tone::Warn,
                format!("ends: {}", human::printable(&bye.reason)),
            )
        }
        _ => return None,
    })
}

/// A change of state, in words.
pub fn changed(change: &ProcessChanged) -> Told {
    let record = &change.record;
    let name = record.state.name();
    let way = match change.from {
        Some(from) if from != name => format!("{from} → {name}"),
        _ => name.to_string(),
    };
    let (tone, detail) = match &record.state {
        ProcessState::Spawn {} => (Tone::Warn, String::new()),
        ProcessState::Running { pid, .. } => {
            let took: u64 = record.steps.iter().map(|step| step.took_ns).sum();
            let took = if took > 0 && change.from == Some(StateName::Spawn) {
                format!(", spawned in {:.1} ms", took as f64 / 1e6)
            } else {
                String::new()
            };
            let adopted = if record.adopted { ", adopted" } else { "" };
            (Tone::Good, format!("pid {pid}{took}{adopted}"))
        }
        ProcessState::Stopping { pid, .. } => (Tone::Warn, format!("pid {pid}")),
        ProcessState::Terminated { exit } => {
            (Tone::Dim, exit.as_ref().map(exit_words).unwrap_or_default())
        }
        ProcessState::Failed { failure } => (
            Tone::Bad,
            match failure {
                Failure::Spawn { failure } => human::printable(&failure.to_string()),
                Failure::Exit { exit } => exit_words(exit),
                Failure::Cancelled => "cancelled before it ran".to_owned(),
            },
        ),
    };
    let text = if detail.is_empty() {
        way
    } else {
        format!("{way}: {detail}")
    };
    told(&record.instance, tone, text)
}

fn notified(event: &ProcessNotified) -> Told {
    let notify = &event.notify;
    let mut words = Vec::new();
    if notify.ready {
        words.push("READY".to_owned());
    }
    if notify.stopping {
        words.push("STOPPING".to_owned());
    }
    if let Some(status) = &notify.status {
        words.push(human::printable(status));
    }
    told(
        &event.instance,
        Tone::Dim,
        format!("says: {}", words.join(", ")),
    )
}

fn probe(result: &ProbeResult) -> Told {
    let kind = match result.probe {
        ProbeKind::Startup => "startup",
        ProbeKind::Liveness => "liveness",
        ProbeKind::Readiness => "readiness",
    };
    match &result.error {
        None => told(
            &result.instance,
            Tone::Dim,
            format!(
                "{kind} probe passed in {:.1} ms",
                result.took_us as f64 / 1e3
            ),
        ),
        Some(error) => told(
            &result.instance,
            Tone::Warn,
            format!(
                "{kind} probe failed, {} in a row: {}",
                result.in_a_row,
                human::printable(error)
            ),
        ),
    }
}

/// A change of the supervisor's mind, in words.
pub fn supervision(change: &SupervisionChanged) -> Told {
    let status = &change.status;
    let tone = match status.phase {
        Phase::Ready => Tone::Good,
        Phase::CircuitOpen | Phase::GaveUp | Phase::Refused { .. } | Phase::NotReady => Tone::Bad,
        Phase::Idle => Tone::Dim,
        _ => Tone::Warn,
    };
    let why = human::printable(&change.why);
    let word = status.word();
    let text = if why.is_empty() {
        word.to_owned()
    } else if why.starts_with(word) {
        why
    } else {
        format!("{word}: {why}")
    };
    told(&status.instance, tone, text)
}

fn registry(change: &RegistryChanged) -> Told {
    match &change.registration {
        None => told(&change.instance, Tone::Dim, "answers no calls any more"),
        Some(registration) if registration.draining => {
            told(&change.instance, Tone::Dim, "takes no more calls")
        }
        Some(registration) => told(
            &change.instance,
            Tone::Dim,
            format!("answers calls: {}", human::list(&registration.methods, 8)),
        ),
    }
}

/// Whether a component came or went, as its link sees it.
pub fn presence(component: &Component, pid: Option<u32>) -> Told {
    match pid {
        Some(pid) => of_component(
            &component.to_string(),
            Tone::Good,
            format!("is there, pid {pid}"),
        ),
        None => of_component(
            &component.to_string(),
            Tone::Bad,
            "does not answer any more",
        ),
    }
}

/// One line for a person; `at` is Unix time in nanoseconds.
pub fn line(style: Style, at: u64, told: &Told) -> String {
    format!(
        "{} {} {}",
        style.paint(Tone::Dim, &human::clock(at)),
        style.paint(Tone::Strong, &format!("{:<20}", told.about)),
        style.paint(told.tone, &told.text),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::{exit, record, status};
    use blackhole_bus_schema::process::{ExitResult, ExitStatus, SpawnStep, StepTime};

    fn words(told: &Told) -> String {
        format!("{} {}", told.about, told.text)
    }

    #[test]
    fn a_change_of_state() {
        let mut run = record(
            "web.1",
            ProcessState::Running {
                pid: 7,
                started_at: 0,
            },
        );
        run.steps = vec![StepTime {
            step: SpawnStep::Exec,
            took_ns: 1_250_000,
        }];
        let change = ProcessChanged {
            from: Some(StateName::Spawn),
            record: run,
        };
        assert_eq!(
            words(&changed(&change)),
            "web.1 SPAWN → RUNNING: pid 7, spawned in 1.2 ms"
        );
        let end = exit(
            ExitResult::Signal,
            ExitStatus::Signaled {
                signal: 9,
                core_dumped: false,
            },
        );
        let failed = record(
            "web.1",
            ProcessState::Failed {
                failure: Failure::Exit { exit: end },
            },
        );
        let change = ProcessChanged {
            from: Some(StateName::Running),
            record: failed,
        };
        assert_eq!(words(&changed(&change)), "web.1 RUNNING → FAILED: SIGKILL");
    }

    #[test]
    fn a_change_of_mind() {
        let change = SupervisionChanged {
            status: status(
                "web.1",
                Phase::BackingOff {
                    attempt: 2,
                    until: 0,
                },
            ),
            why: "restart 2 of 5 in 1.0 s: exit code 1".into(),
        };
        assert_eq!(
            words(&supervision(&change)),
            "web.1 backing off: restart 2 of 5 in 1.0 s: exit code 1"
        );
    }

    #[test]
    fn bodies_become_json() {
        let body = rmpv::Value::Map(vec![
            (
                "a".into(),
                rmpv::Value::Array(vec![1.into(), (-1).into(), rmpv::Value::Nil]),
            ),
            (2.into(), rmpv::Value::Binary(vec![b'x', 0xff])),
        ]);
        assert_eq!(
            json(&body).to_string(),
            "{\"a\":[1,-1,null],\"2\":\"x\u{fffd}\"}"
        );
    }
}
