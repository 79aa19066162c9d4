//! Commands as they come in: those that need no component are answered here, and
//! repetitions; the others are handed on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::replies::Known;
use super::{COMMANDS, Frames, Incoming, Inner, Server};
use crate::component::Ping;
use crate::envelope::{Envelope, EnvelopeError};
use crate::message::Message;
use crate::reply::{Code, Reply, Status, Verdict};
use crate::topic::Topic;
use crate::transport::SubSocket;

/// Budget of a command that names none.
pub(super) const DEFAULT_BUDGET: Duration = Duration::from_secs(30);
/// Longest budget honoured, so that a hostile one cannot overflow a clock.
const MAX_BUDGET: Duration = Duration::from_secs(24 * 3600);

/// Receives commands, answers what needs no component, hands on the rest.
pub(super) async fn dispatcher(
    inner: std::sync::Weak<Inner>,
    socket: SubSocket,
    commands: mpsc::Sender<Incoming>,
) {
    while let Ok((topic, body)) = socket.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        if inner.lock().closing {
            // Clients repeat it to the next life.
            continue;
        }
        let own = Topic::command(&inner.component);
        if topic.as_ref() != own.as_str().as_bytes() {
            tracing::debug!(topic = %String::from_utf8_lossy(&topic), "not for this component");
            continue;
        }
        let envelope = match Envelope::decode(&body) {
            Ok(envelope) => envelope,
            Err(error) => {
                report_undecodable(&inner, &error);
                continue;
            }
        };
        if envelope.kind != Ping::KIND {
            // For `blackhole bus tap`, which cannot stand between a PUB and this SUB:
            // the command as it came, before its answer. Whoever has not subscribed
            // to `cmd.` is sent nothing; with a full queue it is left out.
            let _ = inner.outgoing.try_send(Frames {
                topic: topic.clone(),
                body: body.clone(),
                sent: None,
                patient: false,
            });
        }
        dispatch(&inner, envelope, &commands).await;
    }
}

fn report_undecodable(inner: &Inner, error: &EnvelopeError) {
    match error {
        EnvelopeError::Version { .. } => inner.counters.wrong_version.up(),
        _ => inner.counters.undecodable.up(),
    }
    let text = error.to_string();
    if first_time(inner, &text) {
        tracing::warn!(
            error = text,
            "a message on the command socket is not understood; reported once"
        );
    }
}

/// Whether `what` has not been reported before; remembers at most 64 of them.
pub(super) fn first_time(inner: &Inner, what: &str) -> bool {
    // A kind is as long as its sender likes.
    let what = &crate::bus::shortened(what);
    let mut state = inner.lock();
    if state.unknown_kinds.len() >= 64 || state.unknown_kinds.iter().any(|known| known == what) {
        return false;
    }
    state.unknown_kinds.push(what.to_owned());
    true
}

async fn dispatch(inner: &Arc<Inner>, envelope: Envelope, commands: &mpsc::Sender<Incoming>) {
    let Some(client) = envelope.reply_to else {
        if first_time(inner, &envelope.kind) {
            tracing::warn!(
                kind = envelope.kind,
                "a command without reply_to is ignored; reported once"
            );
        }
        return;
    };
    let id = envelope.id;
    let budget = envelope
        .budget_ms
        .map_or(DEFAULT_BUDGET, Duration::from_millis)
        .min(MAX_BUDGET);
    let known = inner.lock().replies.look_up(id, budget);
    match known {
        Known::New => {}
        Known::InProgress => {
            inner.counters.repeated.up();
            let accepted = Reply {
                to: id,
                verdict: Verdict::Accepted {},
            };
            if let Some(body) = inner.encode(0, Some(id), &accepted) {
                inner.send_reply(&client, body).await;
            }
            return;
        }
        Known::Answered(body) => {
            inner.counters.repeated.up();
            inner.send_reply(&client, body).await;
            return;
        }
        Known::Forgotten => {
            inner.counters.repeated.up();
            let text = format!(
                "{} was carried out, and its answer is not kept any more: ask for the state",
                envelope.kind
            );
            let verdict = Verdict::Failed {
                error: Status::new(Code::Unknown, text),
            };
            if let Some(body) = inner.encode(0, Some(id), &Reply { to: id, verdict }) {
                inner.send_reply(&client, body).await;
            }
            return;
        }
    }
    let incoming = Incoming {
        id,
        kind: envelope.kind,
        client,
        deadline: Instant::now() + budget,
        body: envelope.body,
        inner: Some(inner.clone()),
    };
    if incoming.kind == Ping::KIND {
        inner.counters.pings.up();
        let info = Server {
            inner: inner.clone(),
        }
        .info();
        incoming.reply::<Ping>(Ok(info)).await;
        return;
    }
    inner.lock().replies.begin(id, budget);
    if let Err(full) = commands.try_send(incoming) {
        // As if it had been lost on the way: the client repeats it until there
        // is room or its budget is spent.
        full.into_inner().disown();
        inner.lock().replies.forget(id);
        inner.counters.dropped.up();
        if first_time(inner, "queue full") {
            tracing::warn!(
                waiting = COMMANDS,
                "commands come faster than they are carried out and have to be repeated; reported once"
            );
        }
        return;
    }
    inner.counters.taken.up();
}
