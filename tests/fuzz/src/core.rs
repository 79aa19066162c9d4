//! The bridge's core, driven by bytes: whatever is said to it in whatever
//! order, each call is answered once and nothing is left at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blackhole_bridge::core::{Action, Conn, Core, Outlook, ProcessReport, Undelivered, What};
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::rpc::header::{self, Header, Register, Request, Response};
use blackhole_bus_schema::rpc::{Code, Credentials, Key, Status};
use blackhole_bus_schema::transport::rpc::Frame;

const SERVICES: [&str; 3] = ["web", "db", "pricing"];
/// Connections that there are at one time.
const CONNECTIONS: u64 = 8;
/// Longer than any budget.
const FOR_EVER: Duration = Duration::from_secs(25 * 3600);
/// Largest window that is granted, in bytes.
const MAX_WINDOW: u64 = 4 * 1024 * 1024;

/// Operations, read from bytes until there are no more.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self, end: u64) -> Option<u64> {
        Some(u64::from(self.byte()?) % end)
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A call as its caller sees it.
#[derive(Debug, Default)]
struct Asked {
    /// Answers that are still due.
    due: u64,
    /// Whether one of them is that of a call under way.
    call: bool,
    /// The window of its streamed answer.
    window: u64,
    /// Bytes of parts that may still come.
    room: u64,
}

struct World {
    core: Core,
    now: Instant,
    /// How often each connection was made anew.
    lives: [u64; CONNECTIONS as usize],
    asked: BTreeMap<(Conn, u64), Asked>,
    /// Calls that callees were sent: to whom, and the bridge's id.
    sent: Vec<(Conn, u64)>,
    /// What the last step sent: it may be reported as undelivered.
    last: Vec<(Conn, Frame, Frame, What)>,
    drains: BTreeSet<u64>,
    ticket: u64,
}

/// Calls, answers, ends and lies in the order that the bytes say.
pub fn bridge_core(data: &[u8]) {
    let now = Instant::now();
    let mut world = World {
        core: Core::new(7, Key::from_bytes([7; 32])),
        now,
        lives: [0; CONNECTIONS as usize],
        asked: BTreeMap::new(),
        sent: Vec::new(),
        last: Vec::new(),
        drains: BTreeSet::new(),
        ticket: 0,
    };
    let mut input = Input(data);
    while world.step(&mut input).is_some() {
        world.take();
    }
    world.finish();
}

fn name(index: u64) -> InstanceName {
    let service = SERVICES[index as usize % SERVICES.len()];
    let text = format!("{service}.{}", 1 + index / SERVICES.len() as u64);
    text.parse().expect("the name of an instance")
}

impl World {
    /// A connection's number: never used again.
    fn conn(&self, index: u64) -> Conn {
        1 + index + CONNECTIONS * self.lives[index as usize]
    }

    fn forget(&mut self, conn: Conn) {
        if !self.core.knows(conn) {
            self.asked.retain(|(caller, _), _| *caller != conn);
        }
    }

    fn say(&mut self, index: u64, header: Header<'_>, payload: Frame) {
        let conn = self.conn(index);
        let who = Credentials {
            instance: name(index),
            generation: Generation(1 + self.lives[index as usize] / 2),
        };
        if !self.core.knows(conn) && !self.core.connected(self.now, conn, who) {
            return;
        }
        match &header {
            Header::Request(request) => {
                let asked = self.asked.entry((conn, request.id)).or_default();
                // The same id again is an offence and is not answered.
                if !asked.call {
                    asked.call = true;
                    asked.due += 1;
                    asked.window = u64::from(request.window.unwrap_or(0)).min(MAX_WINDOW);
                    asked.room = asked.window;
                }
            }
            Header::Resolve { id, .. } => {
                self.asked.entry((conn, *id)).or_default().due += 1;
            }
            Header::Credit { id, bytes } => {
                if let Some(asked) = self.asked.get_mut(&(conn, *id)) {
                    // Never more than the window at one time, whatever was credited.
                    asked.room = asked.window.min(asked.room + u64::from(*bytes));
                }
            }
            Header::Cancel { id } => {
                if let Some(asked) = self.asked.get_mut(&(conn, *id))
                    && std::mem::replace(&mut asked.call, false)
                {
                    asked.due -= 1;
                }
            }
            _ => {}
        }
        // What travels is what its encoding says.
        let bytes = header.encode();
        let header = Header::decode(&bytes).expect("what was encoded is decoded");
        self.core.message(self.now, conn, header, payload);
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let operation = input.byte()?;
        let index = input.number(CONNECTIONS)?;
        match operation % 20 {
            0 | 1 => {
                let methods: &[&str] = [&[][..], &["get"], &["get", "put"]][operation as usize % 3];
                let register = Register {
                    version: header::VERSION,
                    methods: methods.iter().map(|name| (*name).to_owned()).collect(),
                    capacity: Some(u32::from(input.byte()? % 4)),
                    endpoint: (operation > 128).then(|| "tcp://127.0.0.1:1".to_owned()),
                };
                self.say(index, Header::Register(register), Frame::new());
            }
            2..=5 => {
                let (id, service) = (input.number(16)?, input.number(5)?);
                let (budget, window) = (input.byte()?, input.byte()?);
                let service = ["web", "db", "pricing", "web.1", "unknown"][service as usize];
                let request = Request {
                    id,
                    service: service.into(),
                    method: if budget % 5 == 4 { "put" } else { "get" }.into(),
                    budget_ms: (budget > 0).then_some(u64::from(budget) * 10),
                    caller: None,
                    trace: None,
                    window: (window > 128).then(|| u32::from(window - 128) * 100),
                };
                let payload = Frame::from(vec![7; usize::from(window) * 16]);
                self.say(index, Header::Request(request), payload);
            }
            6..=8 => {
                let (index, id) = self.answered(input, index)?;
                let code = [Code::Ok, Code::Ok, Code::Internal][operation as usize % 3];
                let result = match code {
                    Code::Ok => Ok(()),
                    code => Err(Status::new(code, "no")),
                };
                let header = Header::Response(Response::new(id, result));
                self.say(index, header, Frame::copy_of(b"answer"));
            }
            9 | 10 => {
                let (index, id) = self.answered(input, index)?;
                let length = usize::from(input.byte()?) * 64;
                self.say(index, Header::Part { id }, Frame::from(vec![9; length]));
            }
            11 => {
                let (id, bytes) = (input.number(16)?, u32::from(input.byte()?) * 50);
                self.say(index, Header::Credit { id, bytes }, Frame::new());
            }
            12 => {
                let id = input.number(16)?;
                self.say(index, Header::Cancel { id }, Frame::new());
            }
            13 => {
                let id = 1000 + input.number(4)?;
                let service = SERVICES[index as usize % SERVICES.len()].into();
                self.say(index, Header::Resolve { id, service }, Frame::new());
            }
            14 => {
                let header = match operation / 20 % 3 {
                    0 => Header::Heartbeat { registered: None },
                    1 => Header::Heartbeat {
                        registered: Some(true),
                    },
                    _ => Header::Goaway {
                        reason: "enough".into(),
                        ends: operation > 200,
                    },
                };
                self.say(index, header, Frame::new());
            }
            15 => {
                let conn = self.conn(index);
                self.core.disconnected(self.now, conn);
                self.forget(conn);
                self.lives[index as usize] += 1;
            }
            16 => self.news(input, index)?,
            17 => {
                self.now += Duration::from_millis(u64::from(input.byte()?) * 20);
                self.core.tick(self.now);
            }
            18 => {
                let which = usize::from(input.byte()?);
                if !self.last.is_empty() {
                    let (conn, header, payload, what) =
                        self.last.swap_remove(which % self.last.len());
                    let why = [Undelivered::Full, Undelivered::NoRoom, Undelivered::Gone];
                    let why = why[which % 3];
                    // Too large for now: it is sent again, without its payload.
                    if let (What::Response(id), Undelivered::NoRoom) = (what, why)
                        && self.core.knows(conn)
                    {
                        self.asked.entry((conn, id)).or_default().due += 1;
                    }
                    self.core
                        .undelivered(self.now, conn, (header, payload), what, why);
                }
            }
            _ => {
                // A header that nobody would write: read, and said if it is one.
                let length = usize::from(input.byte()?);
                let bytes = input.bytes(length);
                if let Ok(header) = Header::decode(bytes) {
                    self.say(index, header, Frame::new());
                }
            }
        }
        Some(())
    }

    /// Whose turn it is to answer which call: mostly the right one's.
    fn answered(&self, input: &mut Input<'_>, index: u64) -> Option<(u64, u64)> {
        let which = input.byte()?;
        if self.sent.is_empty() {
            return Some((index, u64::from(which)));
        }
        let (conn, id) = self.sent[usize::from(which) % self.sent.len()];
        let right = (conn - 1) % CONNECTIONS;
        // Of an earlier life of that connection, or a forger's.
        Some((if which > 200 { index } else { right }, id))
    }

    /// What the rest of the deployment says.
    fn news(&mut self, input: &mut Input<'_>, index: u64) -> Option<()> {
        let which = input.byte()?;
        let instance = name(index);
        match which % 8 {
            0 | 1 => {
                let report = ProcessReport {
                    instance,
                    generation: Generation(input.number(4)?),
                    live: which > 100,
                };
                self.core.process(self.now, report);
            }
            2 => self.core.outlook(self.now, &instance, Outlook::Unready),
            3 => self.core.outlook(self.now, &instance, Outlook::Coming),
            4 => {
                let reason = "its circuit is open".to_owned();
                self.core
                    .outlook(self.now, &instance, Outlook::Hopeless { reason });
            }
            5 => self.core.unjudged(self.now),
            6 => {
                self.core.configured([instance.service().clone()]);
                self.core.settled(self.now);
            }
            _ => {
                let generation = Generation(input.number(4)?);
                let within = Duration::from_millis(u64::from(input.byte()?) * 20);
                self.ticket += 1;
                self.drains.insert(self.ticket);
                self.core
                    .drain(self.now, self.ticket, instance, generation, within);
            }
        }
        Some(())
    }

    /// Looks at everything that the core wants done.
    fn take(&mut self) {
        // What cannot be sent is known at once.
        self.last.clear();
        for action in self.core.take_actions() {
            match action {
                Action::Send {
                    conn,
                    header,
                    payload,
                    what,
                } => self.sending(conn, header, payload, what),
                Action::Drained { ticket, .. } => {
                    assert!(self.drains.remove(&ticket), "a drain was answered twice");
                }
                Action::Disconnect(conn) => {
                    self.core.disconnected(self.now, conn);
                    let index = (conn - 1) % CONNECTIONS;
                    if self.conn(index) == conn {
                        self.lives[index as usize] += 1;
                    }
                    self.asked.retain(|(caller, _), _| *caller != conn);
                }
                Action::Publish(_) | Action::Offence { .. } => {}
            }
        }
        let gone: BTreeSet<Conn> = self.asked.keys().map(|(conn, _)| *conn).collect();
        for conn in gone {
            self.forget(conn);
        }
        assert!(self.core.registrations().len() <= CONNECTIONS as usize);
    }

    fn sending(&mut self, conn: Conn, header: Frame, payload: Frame, what: What) {
        let length = payload.len() as u64;
        match Header::decode(header.as_ref()).expect("the bridge writes headers") {
            Header::Response(response) => {
                let asked = self.asked.get_mut(&(conn, response.id));
                if self.core.knows(conn) {
                    let asked = asked.expect("an answer that nobody asked for");
                    assert!(asked.due > 0, "answered twice");
                    asked.due -= 1;
                    asked.call &= asked.due > 0;
                }
            }
            Header::Part { id } if self.core.knows(conn) => {
                let asked = self.asked.get_mut(&(conn, id));
                let asked = asked.expect("a part that nobody asked for");
                assert!(asked.call, "a part of a call that is over");
                assert!(asked.room >= length, "more than there is room for");
                asked.room -= length;
            }
            Header::Request(request) => {
                self.sent.push((conn, request.id));
            }
            _ => {}
        }
        self.last.push((conn, header, payload, what));
    }

    /// The end: whatever was said, all of it is answered by now.
    fn finish(mut self) {
        self.now += FOR_EVER;
        self.core.tick(self.now);
        self.take();
        assert!(self.core.is_idle(), "calls are left");
        let due = self.asked.values().filter(|asked| asked.due > 0);
        assert_eq!(due.count(), 0, "never answered: {:?}", self.asked);
        assert!(self.drains.is_empty(), "drains are left");
        self.core.end();
        self.take();
        assert!(self.core.is_idle());
    }
}
