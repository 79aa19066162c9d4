//! `blackhole bus tap`: the messages of all daemons, decoded.

use blackhole_bus_schema::bus::tails::{Arrival, Tails};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::envelope::Envelope;
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::transport::SubSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client;
use crate::context::Context;
use crate::error::Error;
use crate::out;
use crate::view::tap::{self, Tapped};

/// Messages of all daemons waiting to be printed. When full the sockets are
/// not read; beyond their own queues a daemon drops, and the gap is shown.
const QUEUE: usize = 4096;

/// A message as it arrived, and from where.
struct Heard {
    component: Component,
    topic: Vec<u8>,
    body: Vec<u8>,
}

pub(super) async fn run(
    context: &Context,
    prefixes: &[String],
    count: Option<u64>,
    secrets: bool,
) -> Result<(), Error> {
    let components = client::components(&context.dirs);
    let there: Vec<String> = components
        .iter()
        .filter(|component| client::lives(&context.dirs, component))
        .map(ToString::to_string)
        .collect();
    if there.is_empty() {
        return Err(super::status::nobody(context, "listen to the bus").await);
    }
    let all = [String::new()];
    let prefixes = if prefixes.is_empty() {
        &all[..]
    } else {
        prefixes
    };
    let (sender, mut heard) = mpsc::channel(QUEUE);
    for component in components {
        listen(&context.dirs, component, prefixes, &sender).await?;
    }
    drop(sender);
    out::note(format!("listening to {}", there.join(", ")));

    let deadline = context.own_timeout().map(|within| Instant::now() + within);
    let mut seen: Vec<(Component, Lives)> = Vec::new();
    let mut printed = 0;
    while count.is_none_or(|count| printed < count) {
        let next = match super::events::within(deadline, heard.recv()).await {
            Some(Some(next)) => next,
            // Nobody sends any more, or the time is over.
            Some(None) | None => {
                return super::events::time_is_over(context, count, "see so many messages");
            }
        };
        let index = match seen.iter().position(|(one, _)| *one == next.component) {
            Some(index) => index,
            None => {
                seen.push((next.component.clone(), Lives::default()));
                seen.len() - 1
            }
        };
        let topic = String::from_utf8_lossy(&next.topic);
        let decoded = Envelope::decode(&next.body);
        if decoded.as_ref().is_ok_and(tap::answers_ping) {
            continue;
        }
        let missed = match &decoded {
            Ok(envelope) => seen[index].1.missed(&topic, envelope),
            Err(_) => 0,
        };
        let tapped = Tapped {
            socket: &next.component,
            topic: &topic,
            body: &next.body,
            envelope: decoded.as_ref().map_err(ToString::to_string),
            missed,
            secrets,
        };
        out::item(context.format, &tap::item(&tapped), || {
            tap::line(context.style, &tapped)
        })?;
        printed += 1;
    }
    Ok(())
}

/// Connects to what a component publishes, log lines included.
async fn listen(
    dirs: &Dirs,
    component: Component,
    prefixes: &[String],
    to: &mpsc::Sender<Heard>,
) -> Result<(), Error> {
    let mut paths = vec![dirs.bus_evt(&component)];
    if matches!(component, Component::ProcessManager(_)) {
        paths.push(dirs.bus_log(&component));
    }
    for path in paths {
        let failed = |source| Error::Bus {
            operation: format!("listen to the {component}"),
            source: Box::new(source),
        };
        let socket = SubSocket::connect(&path).await.map_err(failed)?;
        for prefix in prefixes {
            socket.subscribe(prefix).await.map_err(failed)?;
        }
        let (component, to) = (component.clone(), to.clone());
        tokio::spawn(async move {
            while let Ok((topic, body)) = socket.recv().await {
                let heard = Heard {
                    component: component.clone(),
                    topic: topic.to_vec(),
                    body: body.to_vec(),
                };
                if to.send(heard).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// What was seen of one life of a component.
#[derive(Default)]
struct Lives {
    incarnation: u64,
    tails: Tails,
}

impl Lives {
    /// How many events before this one are missing. The first one of a topic
    /// tells nothing: what was before it is not known.
    fn missed(&mut self, topic: &str, envelope: &Envelope) -> u64 {
        if envelope.seq == 0 {
            return 0;
        }
        if envelope.source.incarnation != self.incarnation {
            self.incarnation = envelope.source.incarnation;
            self.tails.clear();
        }
        let before = self.tails.last(topic);
        let arrival = self.tails.arrived(topic, envelope.seq);
        self.tails.raise(topic, envelope.seq);
        match (arrival, before) {
            (Arrival::Gap, Some(before)) => envelope.seq - before - 1,
            _ => 0,
        }
    }
}
