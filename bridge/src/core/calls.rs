//! Calls under way: parked or sent, each with its budget.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use blackhole_bus_schema::registry::{CALL_BUCKETS_US, CallStats};
use blackhole_bus_schema::rpc::{Code, MAX_CALLS, Status};
use blackhole_bus_schema::transport::rpc::Frame;
use hdrhistogram::Histogram;

use super::Conn;
use super::directory::{MethodId, ServiceId};
use super::ids::IdMap;
use super::streams::Stream;

/// A call as the callee knows it: the bridge's incarnation above a count of
/// [`COUNT_BITS`], so that an answer to an earlier life's call is never taken for
/// one to this. At 200,000 calls a second the count lasts two months.
pub(super) type CallId = u64;
pub(super) const COUNT_BITS: u32 = 40;

/// Calls of all callers together. Each takes some 300 bytes besides its payload.
const MAX_ALL: usize = 65_536;
/// The part of it, and of the bytes, that one service may have: all its instances
/// and their connections together. Whatever it does, the others have theirs.
const SHARE: usize = 4;
/// Payload bytes of one connection's calls under way, and the windows of their streamed
/// answers: four of the largest ones. A callee that does not read leaves the
/// first in the bridge's memory, a caller that does not the second.
const MAX_CALLER_BYTES: usize = 64 * 1024 * 1024;
/// Payload bytes and windows of all calls under way.
const MAX_ALL_BYTES: usize = 512 * 1024 * 1024;
/// Calls that wait for one service that is not there; a quarter of one service's.
const MAX_PARKED: usize = 1024;
/// Payload bytes that wait, for all services together; a quarter of one service's.
const MAX_PARKED_BYTES: usize = 64 * 1024 * 1024;
/// Routes measured one by one; the calls of further ones are counted together. Of
/// one calling service a quarter.
const MAX_ROUTES: usize = 1024;

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) caller: Conn,
    pub(super) caller_id: u64,
    pub(super) caller_name: NameId,
    pub(super) service: ServiceId,
    /// The only instance that is meant.
    pub(super) index: Option<u32>,
    pub(super) method: Arc<str>,
    pub(super) method_id: MethodId,
    /// Who works on it.
    pub(super) sent_to: Option<Conn>,
    /// Among which of the core's actions it was sent.
    pub(super) batch: u64,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    /// Bytes that it counts for: its payload and its window.
    pub(super) bytes: usize,
    pub(super) window: Option<u32>,
    pub(super) stream: Option<Box<Stream>>,
    /// What is kept until it is sent.
    pub(super) unsent: Option<Box<Unsent>>,
    pub(super) parked: bool,
}

/// What a call needs to be sent later.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) payload: Frame,
    pub(super) trace: Option<Box<str>>,
}

impl Call {
    fn parked_bytes(&self) -> usize {
        self.unsent
            .as_ref()
            .map_or(0, |unsent| unsent.payload.len())
    }
}

/// A service that calls, as a number.
pub(super) type NameId = u32;

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

/// What a service has under way.
#[derive(Debug, Default)]
struct Share {
    calls: usize,
    bytes: usize,
    parked_bytes: usize,
    /// Routes measured one by one.
    routes: usize,
}

#[derive(Debug)]
pub(super) struct Calls {
    calls: IdMap<CallId, Call>,
    /// Some of them are of calls that are over, see [`Calls::insert`].
    deadlines: BinaryHeap<Reverse<(Instant, CallId)>>,
    bytes: usize,
    parked_bytes: usize,
    first_id: CallId,
    next_id: CallId,
    /// The services that have called; each has proven its name by a token.
    names: Vec<String>,
    by_name: HashMap<String, NameId>,
    /// By the number of the service that calls.
    shares: Vec<Share>,
    /// Calls that wait, by the service that called and the one that was; none is 0.
    parked_of: IdMap<u64, usize>,
    /// By caller and method.
    measurements: IdMap<u64, Measurement>,
}

impl Calls {
    pub(super) fn new(incarnation: u64) -> Self {
        let first_id = (incarnation << COUNT_BITS) | 1;
        Self {
            calls: IdMap::default(),
            deadlines: BinaryHeap::new(),
            bytes: 0,
            parked_bytes: 0,
            first_id,
            next_id: first_id,
            names: Vec::new(),
            by_name: HashMap::new(),
            shares: Vec::new(),
            parked_of: IdMap::default(),
            measurements: IdMap::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub(super) fn get(&self, id: CallId) -> Option<&Call> {
        self.calls.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: CallId) -> Option<&mut Call> {
        self.calls.get_mut(&id)
    }

    /// The number of a service that calls.
    pub(super) fn name(&mut self, service: &str) -> NameId {
        if let Some(id) = self.by_name.get(service) {
            return *id;
        }
        let id = NameId::try_from(self.names.len()).unwrap_or(NameId::MAX);
        self.names.push(service.to_owned());
        self.shares.push(Share::default());
        self.by_name.insert(service.to_owned(), id);
        id
    }

    /// Whether one more call of `bytes` may be taken from a service, on a connection
    /// with so many calls of so many bytes.
    pub(super) fn admit(
        &self,
        caller: NameId,
        of_connection: (usize, usize),
        bytes: usize,
        ending: bool,
    ) -> Result<(), Status> {
        if ending {
            return Err(Status::new(Code::Unavailable, "the bridge ends"));
        }
        let (calls, called_bytes) = of_connection;
        let (of_service, service_bytes) = self
            .shares
            .get(caller as usize)
            .map_or((0, 0), |share| (share.calls, share.bytes));
        let whose = if calls >= MAX_CALLS || called_bytes + bytes > MAX_CALLER_BYTES {
            Some((calls, called_bytes, "of this caller"))
        } else if of_service >= MAX_ALL / SHARE || service_bytes + bytes > MAX_ALL_BYTES / SHARE {
            Some((of_service, service_bytes, "of this caller's service"))
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
        // A call that is over leaves its deadline behind. When most are such, they are
        // swept: a constant cost for each call, and memory in proportion to the calls.
        if self.deadlines.len() > 1024 + 2 * self.calls.len() {
            let calls = &self.calls;
            self.deadlines
                .retain(|Reverse((_, id))| calls.contains_key(id));
        }
        self.deadlines.push(Reverse((call.deadline, id)));
        self.bytes += call.bytes;
        if let Some(share) = self.shares.get_mut(call.caller_name as usize) {
            share.calls += 1;
            share.bytes += call.bytes;
        }
        self.calls.insert(id, call);
        id
    }

    pub(super) fn remove(&mut self, id: CallId) -> Option<Call> {
        self.unpark(id);
        let call = self.calls.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(call.bytes);
        if let Some(share) = self.shares.get_mut(call.caller_name as usize) {
            share.calls = share.calls.saturating_sub(1);
            share.bytes = share.bytes.saturating_sub(call.bytes);
        }
        Some(call)
    }

    /// Marks a call as parked, if `waiting` others of its service leave room.
    pub(super) fn may_park(
        &mut self,
        id: CallId,
        service: &str,
        waiting: usize,
    ) -> Result<(), Status> {
        let Some(call) = self.calls.get_mut(&id) else {
            return Ok(());
        };
        let bytes = call.parked_bytes();
        let route = u64::from(call.caller_name) << 32 | u64::from(call.service);
        let own = self.parked_of.get(&route).copied().unwrap_or(0);
        let mut nobodys = Share::default();
        let share = self
            .shares
            .get_mut(call.caller_name as usize)
            .unwrap_or(&mut nobodys);
        if waiting >= MAX_PARKED || self.parked_bytes + bytes > MAX_PARKED_BYTES {
            let message = format!(
                "no instance of {service} is there, and {waiting} calls ({} bytes in all) wait already",
                self.parked_bytes
            );
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        if own >= MAX_PARKED / SHARE || share.parked_bytes + bytes > MAX_PARKED_BYTES / SHARE {
            let message = format!(
                "no instance of {service} is there, and {own} calls of this caller's service ({} bytes in all) wait already",
                share.parked_bytes
            );
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        call.parked = true;
        share.parked_bytes += bytes;
        self.parked_bytes += bytes;
        self.parked_of.insert(route, own + 1);
        Ok(())
    }

    pub(super) fn unpark(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut call.parked, false) {
            return;
        }
        let bytes = call.parked_bytes();
        self.parked_bytes = self.parked_bytes.saturating_sub(bytes);
        if let Some(share) = self.shares.get_mut(call.caller_name as usize) {
            share.parked_bytes = share.parked_bytes.saturating_sub(bytes);
        }
        let route = u64::from(call.caller_name) << 32 | u64::from(call.service);
        match self.parked_of.get_mut(&route) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                self.parked_of.remove(&route);
            }
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

    /// When to look for expired calls. It may be the deadline of a call that is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((at, _))| *at)
    }

    /// A call whose budget is spent, told once.
    pub(super) fn expired(&mut self, now: Instant) -> Option<CallId> {
        while let Some(Reverse((at, id))) = self.deadlines.peek().copied()
            && at <= now
        {
            self.deadlines.pop();
            if self.calls.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    /// Whether this id was given out by this life of the bridge.
    pub(super) fn was_issued(&self, id: CallId) -> bool {
        (self.first_id..self.next_id).contains(&id)
    }

    /// Whether an id belongs to this life, given out or not.
    pub(super) fn is_of_this_life(&self, id: CallId) -> bool {
        id >> COUNT_BITS == self.first_id >> COUNT_BITS
    }

    /// Counts a call that was sent.
    pub(super) fn measure(&mut self, now: Instant, id: CallId, code: Code) {
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        let mut route = u64::from(call.caller_name) << 32 | u64::from(call.method_id);
        if !self.measurements.contains_key(&route) {
            match self.shares.get_mut(call.caller_name as usize) {
                Some(share)
                    if share.routes < MAX_ROUTES / SHARE
                        && self.measurements.len() < MAX_ROUTES =>
                {
                    share.routes += 1;
                }
                _ => route = OTHER,
            }
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

    /// What was measured, by the caller's name and the method; none for all others.
    pub(super) fn measurements(
        &self,
    ) -> impl Iterator<Item = (Option<(&str, MethodId)>, &Measurement)> {
        self.measurements.iter().map(|(route, measurement)| {
            let caller = self.names.get((route >> 32) as usize);
            let named = caller.filter(|_| *route != OTHER);
            let route = named.map(|caller| (caller.as_str(), *route as MethodId));
            (route, measurement)
        })
    }
}

/// Stands for all routes that are not told apart.
const OTHER: u64 = u64::MAX;
