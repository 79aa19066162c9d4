//! Calls under way: parked or sent, each with its budget.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::registry::{CALL_BUCKETS_US, CallStats};
use blackhole_bus_schema::rpc::header::{Callee, Request};
use blackhole_bus_schema::rpc::{Code, DEFAULT_BUDGET, MAX_BUDGET, MAX_CALLS, Status};
use bytes::Bytes;
use hdrhistogram::Histogram;

use super::Conn;

/// A call as the callee knows it: the bridge's incarnation in the upper half,
/// so that an answer to an earlier life's call is never taken for one to this.
pub(super) type CallId = u64;

/// Calls of all callers together. Each takes some 300 bytes besides its payload.
const MAX_ALL: usize = 65_536;
/// Payload bytes of one caller's calls under way: four of the largest ones. A
/// callee that does not read leaves them in the bridge's memory.
const MAX_CALLER_BYTES: usize = 64 * 1024 * 1024;
/// Payload bytes of all calls under way.
const MAX_ALL_BYTES: usize = 512 * 1024 * 1024;
/// Calls that wait for one service that is not there.
const MAX_PARKED: usize = 256;
/// Payload bytes that wait, all services together.
const MAX_PARKED_BYTES: usize = 64 * 1024 * 1024;
/// Routes measured one by one; the calls of further ones are counted together.
const MAX_ROUTES: usize = 1024;

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) caller: Conn,
    pub(super) caller_id: u64,
    pub(super) callee: Callee,
    pub(super) method: String,
    /// Who works on it.
    pub(super) sent_to: Option<Conn>,
    caller_name: InstanceName,
    started: Instant,
    deadline: Instant,
    /// Kept until it is sent.
    payload: Bytes,
    /// Length of the payload, sent or not.
    pub(super) bytes: usize,
    parked: bool,
}

impl Call {
    pub(super) fn new(
        now: Instant,
        caller: Conn,
        caller_name: InstanceName,
        request: Request,
        callee: Callee,
        payload: Bytes,
    ) -> Self {
        let budget = request
            .budget_ms
            .map_or(DEFAULT_BUDGET, Duration::from_millis);
        Self {
            caller,
            caller_id: request.id,
            callee,
            method: request.method,
            sent_to: None,
            caller_name,
            started: now,
            deadline: now + budget.min(MAX_BUDGET),
            bytes: payload.len(),
            payload,
            parked: false,
        }
    }

    /// What to say when the budget is spent, and whom to tell that it is.
    pub(super) fn expiry(&self) -> (String, Option<Conn>) {
        let budget = self.deadline.duration_since(self.started).as_millis();
        let message = match self.sent_to {
            Some(_) => format!("{} did not answer within {budget} ms", self.callee.service),
            None => format!(
                "no instance of {} was there within {budget} ms",
                self.callee.service
            ),
        };
        (message, self.sent_to)
    }
}

/// Who called what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Service that called.
    pub caller: String,
    /// Service that was called.
    pub service: String,
    /// Method; empty for all calls beyond the number of routes that are told apart.
    pub method: String,
}

/// How the calls of a route went.
#[derive(Debug)]
pub struct Measurement {
    /// Time from the request's arrival to the answer's, in microseconds.
    pub took_us: Histogram<u64>,
    /// Sum of the times.
    pub sum_us: u64,
    /// Calls by their time: at most `CALL_BUCKETS_US[n]`, and more than the one before.
    pub buckets: [u64; CALL_BUCKETS_US.len()],
    /// Calls that did not end with `ok`.
    pub failed: u64,
}

impl Measurement {
    /// As it is told on the bus.
    pub(super) fn stats(&self, route: &Route) -> CallStats {
        let quantile = |quantile| self.took_us.value_at_quantile(quantile);
        let mut below = 0;
        let cumulative = self.buckets.iter().map(|calls| {
            below += calls;
            below
        });
        CallStats {
            caller: route.caller.clone(),
            service: route.service.clone(),
            method: route.method.clone(),
            calls: self.took_us.len(),
            failed: self.failed,
            sum_us: self.sum_us,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            max_us: self.took_us.max(),
            buckets: cumulative.collect(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Calls {
    calls: HashMap<CallId, Call>,
    deadlines: BTreeSet<(Instant, CallId)>,
    bytes: usize,
    parked_bytes: usize,
    first_id: CallId,
    next_id: CallId,
    measurements: HashMap<Route, Measurement>,
}

impl Calls {
    pub(super) fn new(incarnation: u64) -> Self {
        let first_id = (incarnation << 32) | 1;
        Self {
            calls: HashMap::new(),
            deadlines: BTreeSet::new(),
            bytes: 0,
            parked_bytes: 0,
            first_id,
            next_id: first_id,
            measurements: HashMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub(super) fn get(&self, id: CallId) -> Option<&Call> {
        self.calls.get(&id)
    }

    /// Whether one more call of `bytes` may be taken from a caller with so many
    /// calls of so many bytes.
    pub(super) fn admit(
        &self,
        of_caller: (usize, usize),
        bytes: usize,
        ending: bool,
    ) -> Result<(), Status> {
        if ending {
            return Err(Status::new(Code::Unavailable, "the bridge ends"));
        }
        let (calls, called_bytes) = of_caller;
        let whose = if calls >= MAX_CALLS || called_bytes + bytes > MAX_CALLER_BYTES {
            Some((calls, called_bytes, "of this caller"))
        } else if self.calls.len() >= MAX_ALL || self.bytes + bytes > MAX_ALL_BYTES {
            Some((self.calls.len(), self.bytes, "of all services"))
        } else {
            None
        };
        match whose {
            None => Ok(()),
            Some((calls, bytes, whose)) => {
                let message = format!("{calls} calls {whose} with {bytes} bytes are under way");
                Err(Status::new(Code::ResourceExhausted, message))
            }
        }
    }

    pub(super) fn insert(&mut self, call: Call) -> CallId {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.deadlines.insert((call.deadline, id));
        self.bytes += call.bytes;
        self.calls.insert(id, call);
        id
    }

    pub(super) fn remove(&mut self, id: CallId) -> Option<Call> {
        self.unpark(id);
        let call = self.calls.remove(&id)?;
        self.deadlines.remove(&(call.deadline, id));
        self.bytes = self.bytes.saturating_sub(call.bytes);
        Some(call)
    }

    /// Marks a call as parked, if `waiting` others of its service leave room.
    pub(super) fn may_park(&mut self, id: CallId, waiting: usize) -> Result<(), Status> {
        let Some(call) = self.calls.get_mut(&id) else {
            return Ok(());
        };
        let bytes = self.parked_bytes + call.payload.len();
        if waiting >= MAX_PARKED || bytes > MAX_PARKED_BYTES {
            let message = format!(
                "no instance of {} is there, and {waiting} calls ({} bytes in all) wait already",
                call.callee.service, self.parked_bytes
            );
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        call.parked = true;
        self.parked_bytes = bytes;
        Ok(())
    }

    pub(super) fn unpark(&mut self, id: CallId) {
        if let Some(call) = self.calls.get_mut(&id)
            && std::mem::replace(&mut call.parked, false)
        {
            self.parked_bytes = self.parked_bytes.saturating_sub(call.payload.len());
        }
    }

    /// All parked calls, oldest first.
    pub(super) fn parked(&self) -> Vec<CallId> {
        let mut parked: Vec<CallId> = self
            .calls
            .iter()
            .filter(|(_, call)| call.parked)
            .map(|(id, _)| *id)
            .collect();
        parked.sort_unstable();
        parked
    }

    /// Marks a call as sent; what to send.
    pub(super) fn send(&mut self, now: Instant, id: CallId, to: Conn) -> Option<(Request, Bytes)> {
        self.unpark(id);
        let call = self.calls.get_mut(&id)?;
        call.sent_to = Some(to);
        let left = call.deadline.saturating_duration_since(now).as_millis();
        let request = Request {
            id,
            service: String::new(),
            method: call.method.clone(),
            budget_ms: Some(u64::try_from(left).unwrap_or(u64::MAX)),
            caller: Some(call.caller_name.clone()),
        };
        Some((request, std::mem::take(&mut call.payload)))
    }

    /// A sent call never left: it has its payload again and is nobody's.
    pub(super) fn take_back(&mut self, id: CallId, from: Conn, payload: Bytes) -> Option<CallId> {
        let call = self
            .calls
            .get_mut(&id)
            .filter(|call| call.sent_to == Some(from))?;
        call.sent_to = None;
        call.payload = payload;
        Some(id)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A call whose budget is spent.
    pub(super) fn expired(&self, now: Instant) -> Option<CallId> {
        self.deadlines
            .first()
            .filter(|(at, _)| *at <= now)
            .map(|(_, id)| *id)
    }

    /// Whether this id was given out by this life of the bridge.
    pub(super) fn was_issued(&self, id: CallId) -> bool {
        (self.first_id..self.next_id).contains(&id)
    }

    /// Whether an id belongs to this life, given out or not.
    pub(super) fn is_of_this_life(&self, id: CallId) -> bool {
        id >> 32 == self.first_id >> 32
    }

    /// Counts a call that was sent.
    pub(super) fn measure(&mut self, now: Instant, id: CallId, code: Code) {
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        let mut route = Route {
            caller: call.caller_name.service().to_string(),
            service: call.callee.service.to_string(),
            method: call.method.clone(),
        };
        if self.measurements.len() >= MAX_ROUTES && !self.measurements.contains_key(&route) {
            route = Route {
                caller: String::new(),
                service: String::new(),
                method: String::new(),
            };
        }
        let took = now.saturating_duration_since(call.started).as_micros();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        let measurement = match self.measurements.entry(route) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                // Two digits of precision, some kilobytes each, grown as needed.
                let Ok(took_us) = Histogram::new(2) else {
                    return;
                };
                entry.insert(Measurement {
                    took_us,
                    sum_us: 0,
                    buckets: [0; CALL_BUCKETS_US.len()],
                    failed: 0,
                })
            }
        };
        // It resizes itself: only a value above 2^63 is refused.
        let _ = measurement.took_us.record(took);
        measurement.sum_us = measurement.sum_us.saturating_add(took);
        let bucket = CALL_BUCKETS_US.partition_point(|bound| *bound < took);
        if let Some(bucket) = measurement.buckets.get_mut(bucket) {
            *bucket += 1;
        }
        if code != Code::Ok {
            measurement.failed += 1;
        }
    }

    pub(super) fn measurements(&self) -> impl Iterator<Item = (&Route, &Measurement)> {
        self.measurements.iter()
    }
}
