//! What the RPC benchmarks measure: calls through the bridge, and the floors below them.

use std::path::Path;
use std::time::{Duration, Instant};

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::rpc::Key;

use crate::Daemon;
use crate::peers::{Peer, Placement, Round, Side, Took, cpu_time, run};

/// Sizes of payloads.
pub const SIZES: [(usize, &str); 3] = [(128, "128 B"), (4096, "4 KiB"), (1 << 20, "1 MiB")];
/// Callers, and calls that each has under way.
pub const LOADS: [(usize, usize); 4] = [(1, 1), (1, 64), (8, 1), (8, 8)];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ping-pong over a Unix socket; one call at a time.
    UnixSocket,
    /// A bare DEALER and a bare ROUTER.
    DealerRouter,
    /// Two bare DEALERs and a bare ROUTER in between that reads nothing.
    Between,
    /// Two services and the bridge.
    Bridge,
    /// Two services that the bridge has made acquainted.
    Direct,
}

impl Kind {
    /// All of them, floors first.
    pub const ALL: [Self; 5] = [
        Self::UnixSocket,
        Self::DealerRouter,
        Self::Between,
        Self::Bridge,
        Self::Direct,
    ];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnixSocket => "floor: Unix socket",
            Self::DealerRouter => "floor: bare DEALER and ROUTER",
            Self::Between => "floor: bare ROUTER in between",
            Self::Bridge => "through the bridge",
            Self::Direct => "direct",
        }
    }

    /// Whether callers of this kind have several calls under way.
    pub fn can(self, in_flight: usize) -> bool {
        self != Self::UnixSocket || in_flight == 1
    }
}

/// The processes of one measurement, ready for rounds.
#[derive(Debug)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    callers: Vec<Peer>,
    answering: Vec<Peer>,
    bridge: Option<Daemon>,
}

/// Processor time of one round, all processes of a side together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// The callers.
    pub callers: Duration,
    /// What is in between: a bridge, or a ROUTER that passes on.
    pub between: Duration,
    /// Who answers.
    pub answering: Duration,
}

impl Subject {
    /// Starts its processes; sockets are made in `dir`, which must be its own.
    ///
    /// # Panics
    /// When one cannot be started.
    pub fn start(kind: Kind, placement: Placement, callers: usize, dir: &Path) -> Self {
        let socket = dir.join("socket").display().to_string();
        let inner = |arguments: &[&str]| Peer::start(placement, Side::Inner, arguments);
        let outer = |arguments: &[&str]| Peer::start(placement, Side::Outer, arguments);
        let numbers = 1..=callers;
        let dealers = || {
            let number = |number: usize| number.to_string();
            let dealer = |n| outer(&["dealer-caller", &socket, &number(n)]);
            numbers.clone().map(dealer).collect()
        };
        let (answering, callers, bridge) = match kind {
            Kind::UnixSocket => {
                let answering = vec![inner(&["unix-echo", &socket])];
                let caller = |_| outer(&["unix-caller", &socket]);
                (answering, numbers.map(caller).collect(), None)
            }
            Kind::DealerRouter => {
                let answering = vec![inner(&["router-echo", &socket])];
                (answering, dealers(), None)
            }
            Kind::Between => {
                let between = inner(&["router-between", &socket]);
                let answering = vec![between, outer(&["dealer-echo", &socket])];
                (answering, dealers(), None)
            }
            Kind::Bridge | Kind::Direct => {
                let hosts = Hosts::start(placement, dir);
                // Whoever speaks to each other is on different processors, where there are two.
                let (way, side) = match kind {
                    Kind::Direct => ("direct-caller", Side::Inner),
                    _ => ("caller", Side::Outer),
                };
                let answering = vec![hosts.peer(placement, side, "callee", "callee.1", &[])];
                let caller = |n| {
                    let instance = format!("caller.{n}");
                    hosts.peer(placement, Side::Outer, way, &instance, &["callee"])
                };
                (answering, numbers.map(caller).collect(), Some(hosts.bridge))
            }
        };
        Self {
            kind,
            callers,
            answering,
            bridge,
        }
    }

    /// One round of each caller.
    pub fn round(&mut self, round: Round) -> Took {
        run(&mut self.callers, round)
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Cpu {
        let sum = |peers: &[Peer]| peers.iter().map(|peer| cpu_time(peer.pid())).sum();
        let callers = sum(&self.callers);
        let (between, answering) = match (&self.bridge, self.answering.as_slice()) {
            (Some(bridge), answering) => (cpu_time(bridge.pid()), sum(answering)),
            (None, [between, answering]) => (cpu_time(between.pid()), cpu_time(answering.pid())),
            (None, answering) => (Duration::ZERO, sum(answering)),
        };
        Cpu {
            callers,
            between,
            answering,
        }
    }

    /// Calls of a round that takes about `time`.
    pub fn calls_for(&mut self, time: Duration, in_flight: usize, bytes: usize) -> usize {
        let calls = 4 * in_flight;
        let round = Round {
            calls,
            in_flight,
            bytes,
        };
        self.round(round);
        let begin = Instant::now();
        self.round(round);
        let each = begin.elapsed().as_secs_f64() / calls as f64;
        let fitting = time.as_secs_f64() / each;
        (fitting as usize).clamp(calls, 20_000)
    }

    /// The processes by their part, for profilers.
    pub fn pids(&self) -> Vec<(&'static str, u32)> {
        let callers = self.callers.iter().map(|peer| ("caller", peer.pid()));
        let answering = self.answering.iter().map(|peer| ("answering", peer.pid()));
        let bridge = self.bridge.iter().map(|daemon| ("bridge", daemon.pid()));
        callers.chain(answering).chain(bridge).collect()
    }
}

/// A bridge, and who may connect to it.
struct Hosts {
    bridge: Daemon,
    dirs: Dirs,
    key: Key,
}

impl Hosts {
    fn start(placement: Placement, dir: &Path) -> Self {
        let dirs = Dirs {
            run: dir.join("r"),
            state: dir.join("s"),
        };
        let made = dirs.create().map(|()| Key::load_or_create(&dirs));
        let Ok(Ok(key)) = made else {
            panic!("{} cannot be used: {made:?}", dir.display());
        };
        let bridge = placement.on(Side::Inner, || Daemon::start("blackhole-bridge", &dirs));
        Self { bridge, dirs, key }
    }

    fn peer(
        &self,
        placement: Placement,
        side: Side,
        role: &str,
        name: &str,
        more: &[&str],
    ) -> Peer {
        let Ok(instance) = name.parse() else {
            panic!("{name} is no instance");
        };
        let socket = self.dirs.rpc_socket().display().to_string();
        let token = self.key.token(&instance, Generation(1));
        let mut arguments = vec![role, &socket, name, &token];
        arguments.extend(more);
        Peer::start(placement, side, &arguments)
    }
}
