//! What a process counts of its side of the bus, since its start.
//!
//! A [`super::Server`] counts what it published and the commands it took. Links
//! count for themselves and, together, for the whole process: a daemon shows
//! the sum of its links beside its server's counters in
//! [`crate::component::ComponentInfo`].

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::component::{Bye, Heartbeat, Hello};
use crate::health::ProbeResult;
use crate::message::Message;
use crate::process::{ProcessChanged, ProcessNotified};
use crate::registry::RegistryChanged;
use crate::resource::{OomKilled, UsageTick};
use crate::supervision::SupervisionChanged;

/// One number that only rises.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(super) fn up(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, by: u64) {
        // Numbers for people: no other memory hangs on their order.
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident => $key:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub(super) struct $name {
            $($(#[$doc])* pub(super) $field: Counter,)*
        }

        impl $name {
            /// Adds all of them, zeros too, under their names.
            pub(super) fn read(&self, into: &mut BTreeMap<String, u64>) {
                $(into.insert($key.to_owned(), self.$field.get());)*
            }
        }
    };
}

counters!(
    /// What a server counts.
    ServerCounters {
        /// Events on `evt.process.`.
        process => "published.process",
        /// Events on `evt.health.`.
        health => "published.health",
        /// Events on `evt.supervision.`.
        supervision => "published.supervision",
        /// Events on `evt.resource.`.
        resource => "published.resource",
        /// Events on `evt.registry.`.
        registry => "published.registry",
        /// Presence: hello, heartbeats, bye.
        component => "published.component",
        /// Events on topics that none of these cover.
        other => "published.other",
        /// Answers to commands, repeated ones too.
        replies => "replies",
        /// Commands handed to the component; pings are answered without it.
        taken => "commands.taken",
        /// Pings answered.
        pings => "commands.pings",
        /// Commands that came again: answered from the cache, or "accepted".
        repeated => "commands.repeated",
        /// Commands dropped because the queue was full; their clients repeat them.
        dropped => "commands.dropped",
        /// Commands refused because their budget was spent before they were looked at.
        expired => "commands.expired",
        /// Commands of kinds that the component does not know.
        unknown => "commands.unknown_kind",
        /// Messages on the command socket that are no envelope.
        undecodable => "commands.undecodable",
        /// Messages on the command socket of another version of the envelope.
        wrong_version => "commands.wrong_version",
        /// Clients over TCP that had not the password.
        refused => "tcp.refused",
        /// Log lines published.
        log_lines => "log.lines_published",
        /// Log lines that a follower did not get because it was too slow.
        log_dropped => "log.lines_dropped",
    }
);

impl ServerCounters {
    /// Counts an event by its topic's stream.
    pub(super) fn published(&self, topic: &str) {
        let stream = topic
            .strip_prefix("evt.")
            .and_then(|rest| rest.split('.').next());
        match stream {
            Some("process") => &self.process,
            Some("health") => &self.health,
            Some("supervision") => &self.supervision,
            Some("resource") => &self.resource,
            Some("registry") => &self.registry,
            Some("component") => &self.component,
            _ => &self.other,
        }
        .up();
    }
}

counters!(
    /// What a link counts.
    LinkCounters {
        /// Times that a stream was found to miss something: a gap in `seq`, or tails that differ.
        gaps => "link.gaps",
        /// Snapshots asked for.
        snapshots => "link.snapshots",
        /// Losses made good by a snapshot.
        healed => "link.healed",
        /// Events thrown away because a snapshot had them already.
        discarded => "link.discarded",
        /// Events that the link's user was too slow for.
        lagged => "link.lagged",
        /// Times that the path was proven again after it was lost.
        reconnects => "link.reconnects",
        /// Events of kinds that this version does not know.
        unknown => "link.unknown_kind",
        /// Messages of another version of the envelope.
        wrong_version => "link.wrong_version",
        /// Messages that are no envelope.
        undecodable => "link.undecodable",
        /// Commands sent, pings left out.
        requests => "link.requests",
        /// Commands sent again.
        repeats => "link.repeats",
    }
);

/// The sum over all links of this process.
static ALL_LINKS: LazyLock<LinkCounters> = LazyLock::new(LinkCounters::default);

impl LinkCounters {
    /// Counts for this link and for the process.
    pub(super) fn count(&self, which: fn(&Self) -> &Counter) {
        self.count_many(which, 1);
    }

    /// [`LinkCounters::count`], so many times.
    pub(super) fn count_many(&self, which: fn(&Self) -> &Counter, by: u64) {
        which(self).add(by);
        which(&ALL_LINKS).add(by);
    }
}

/// What all links of this process have counted together.
pub(super) fn read_all_links(into: &mut BTreeMap<String, u64>) {
    ALL_LINKS.read(into);
}

/// Whether this version knows events of a kind. What it does not know is handed
/// on all the same: its user may.
pub(super) fn is_known_event(kind: &str) -> bool {
    const KNOWN: [&str; 10] = [
        ProcessChanged::KIND,
        ProcessNotified::KIND,
        ProbeResult::KIND,
        SupervisionChanged::KIND,
        RegistryChanged::KIND,
        UsageTick::KIND,
        OomKilled::KIND,
        Hello::KIND,
        Heartbeat::KIND,
        Bye::KIND,
    ];
    KNOWN.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_by_stream() {
        let counters = ServerCounters::default();
        for topic in [
            "evt.process.a.1.",
            "evt.process.b.1.",
            "evt.resource.",
            "x.",
        ] {
            counters.published(topic);
        }
        let mut read = BTreeMap::new();
        counters.read(&mut read);
        let some: Vec<_> = read.into_iter().filter(|(_, count)| *count > 0).collect();
        let expected = [
            ("published.other", 1),
            ("published.process", 2),
            ("published.resource", 1),
        ];
        assert_eq!(some, expected.map(|(key, count)| (key.to_owned(), count)));
    }

    #[test]
    fn a_link_counts_for_itself_and_for_the_process() {
        let of = |read: &dyn Fn(&mut BTreeMap<String, u64>)| {
            let mut map = BTreeMap::new();
            read(&mut map);
            map["link.discarded"]
        };
        let before = of(&read_all_links);
        let link = LinkCounters::default();
        link.count_many(|all| &all.discarded, 3);
        assert_eq!(of(&|map| link.read(map)), 3);
        assert!(of(&read_all_links) >= before + 3);
    }
}
