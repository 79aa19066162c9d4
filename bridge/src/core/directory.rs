//! What is known of services: who is registered, what is to be expected of
//! those who are not, and the calls that wait for them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use blackhole_bus_schema::names::{Generation, InstanceName, ServiceName};
use blackhole_bus_schema::rpc::header::{Callee, Endpoint};
use blackhole_bus_schema::rpc::{Code, Credentials, Status};

use super::Conn;
use super::calls::CallId;

/// A registered instance.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) conn: Conn,
    pub(super) generation: Generation,
    pub(super) methods: BTreeSet<String>,
    pub(super) capacity: u32,
    pub(super) endpoint: Option<String>,
    pub(super) draining: bool,
    /// When it was last picked, as a count of picks: ties go round.
    pub(super) picked: u64,
}

/// What a process-manager says of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessReport {
    /// The instance.
    pub instance: InstanceName,
    /// Its latest spawn.
    pub generation: Generation,
    /// Whether that spawn's process lives or is being made.
    pub live: bool,
}

/// What the supervisor lets expect of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlook {
    /// It runs or will run, and takes calls once it is registered.
    Coming,
    /// It runs, but is not ready or is being stopped: it gets no calls but
    /// those that mean it by name.
    Unready,
    /// It will not run unless an operator says so.
    Hopeless {
        /// Why.
        reason: String,
    },
}

/// Where a call goes.
#[derive(Debug)]
pub(super) enum Pick {
    Instance(Conn),
    Park,
    Refuse(Status),
}

#[derive(Debug, Default)]
struct Service {
    /// Somebody who must know has named it: the configuration, a token, a component.
    known: bool,
    entries: BTreeMap<u32, Entry>,
    /// The oldest spawn of each instance that is not over.
    floors: BTreeMap<u32, Generation>,
    outlooks: BTreeMap<u32, Outlook>,
    /// Spawns that an operator wants to have no more calls.
    drained: BTreeMap<u32, Generation>,
    parked: VecDeque<CallId>,
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    services: HashMap<ServiceName, Service>,
    /// Whether all who know of services have been heard.
    settled: bool,
    picks: u64,
}

impl Directory {
    pub(super) fn configured(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        for service in services {
            self.services.entry(service).or_default().known = true;
        }
    }

    /// Returns the calls that wait, to be dispatched again.
    pub(super) fn settle(&mut self) -> Vec<CallId> {
        self.settled = true;
        let unknown = self.services.values_mut().filter(|service| !service.known);
        unknown
            .flat_map(|service| service.parked.drain(..))
            .collect()
    }

    fn known(&mut self, service: &ServiceName) -> &mut Service {
        // Named by a token or a component: their number is that of real services.
        let service = self.services.entry(service.clone()).or_default();
        service.known = true;
        service
    }

    /// Registers an instance, instead of an earlier connection of it. Returns
    /// whether others can tell it from what was there before, and the calls
    /// that waited for its service.
    pub(super) fn register(
        &mut self,
        instance: &InstanceName,
        mut entry: Entry,
    ) -> (bool, Vec<CallId>) {
        let service = self.known(instance.service());
        let floor = service.floors.entry(instance.index()).or_default();
        *floor = entry.generation.max(*floor);
        match service.drained.get(&instance.index()) {
            Some(drained) if *drained == entry.generation => entry.draining = true,
            Some(drained) if *drained < entry.generation => {
                service.drained.remove(&instance.index());
            }
            _ => {}
        }
        let news = service.entries.get(&instance.index()).is_none_or(|before| {
            before.draining != entry.draining
                || before.generation != entry.generation
                || before.methods != entry.methods
                || before.endpoint != entry.endpoint
        });
        service.entries.insert(instance.index(), entry);
        (news, service.parked.drain(..).collect())
    }

    pub(super) fn unregister(&mut self, instance: &InstanceName) -> bool {
        self.services
            .get_mut(instance.service())
            .is_some_and(|service| service.entries.remove(&instance.index()).is_some())
    }

    pub(super) fn entry(&self, instance: &InstanceName) -> Option<&Entry> {
        self.services
            .get(instance.service())?
            .entries
            .get(&instance.index())
    }

    pub(super) fn is_registered(&self, instance: &InstanceName, conn: Conn) -> bool {
        self.entry(instance).is_some_and(|entry| entry.conn == conn)
    }

    /// Whether that changed something.
    pub(super) fn drain(&mut self, instance: &InstanceName, conn: Conn) -> bool {
        let entry = self
            .services
            .get_mut(instance.service())
            .and_then(|service| service.entries.get_mut(&instance.index()));
        match entry {
            Some(entry) if entry.conn == conn => !std::mem::replace(&mut entry.draining, true),
            _ => false,
        }
    }

    /// No more calls for this spawn, registered now or later. Returns its
    /// connection if it is registered, and whether it was not draining yet.
    pub(super) fn drain_spawn(
        &mut self,
        instance: &InstanceName,
        generation: Generation,
    ) -> Option<(Conn, bool)> {
        let service = self.known(instance.service());
        service.drained.insert(instance.index(), generation);
        let entry = service
            .entries
            .get_mut(&instance.index())
            .filter(|entry| entry.generation == generation)?;
        let news = !std::mem::replace(&mut entry.draining, true);
        Some((entry.conn, news))
    }

    pub(super) fn registered(&self) -> impl Iterator<Item = (&ServiceName, u32, &Entry)> {
        self.services.iter().flat_map(|(name, service)| {
            service
                .entries
                .iter()
                .map(move |(index, entry)| (name, *index, entry))
        })
    }

    pub(super) fn endpoints(&self, service: &ServiceName) -> Result<Vec<Endpoint>, Status> {
        let Some(known) = self.services.get(service).filter(|service| service.known) else {
            return Err(not_found(service));
        };
        let open = known.entries.iter().filter(|(_, entry)| !entry.draining);
        let endpoints = open.filter_map(|(index, entry)| {
            let instance = InstanceName::new(service.clone(), *index)?;
            Some(Endpoint {
                instance,
                endpoint: entry.endpoint.clone()?,
            })
        });
        Ok(endpoints.collect())
    }

    pub(super) fn process(&mut self, report: &ProcessReport) {
        let index = report.instance.index();
        let service = self.known(report.instance.service());
        // The manager's word counts: a live one is the floor, whatever was said
        // before (the counter may have begun anew with a new state directory).
        let floor = match report.live {
            true => report.generation,
            false => {
                let floor = service.floors.get(&index).copied().unwrap_or_default();
                floor.max(report.generation.next())
            }
        };
        service.floors.insert(index, floor);
    }

    /// Returns the calls that waited, when they may have to wait no longer.
    pub(super) fn outlook(&mut self, instance: &InstanceName, outlook: Outlook) -> Vec<CallId> {
        let service = self.known(instance.service());
        let before = service.outlooks.insert(instance.index(), outlook);
        let after = service.outlooks.get(&instance.index());
        let waiting_is_over = match (&before, after) {
            (Some(Outlook::Unready), Some(Outlook::Coming)) => true,
            (_, Some(Outlook::Hopeless { .. })) => before.as_ref() != after,
            _ => false,
        };
        match waiting_is_over {
            true => service.parked.drain(..).collect(),
            false => Vec::new(),
        }
    }

    /// Nobody judges readiness any more: who is registered is ready. Returns
    /// the calls that waited.
    pub(super) fn unjudged(&mut self) -> Vec<CallId> {
        let mut parked = Vec::new();
        for service in self.services.values_mut() {
            let mut changed = false;
            for outlook in service.outlooks.values_mut() {
                if *outlook == Outlook::Unready {
                    *outlook = Outlook::Coming;
                    changed = true;
                }
            }
            if changed {
                parked.extend(service.parked.drain(..));
            }
        }
        parked.sort_unstable();
        parked
    }

    /// Whether a connection belongs to a spawn that is over.
    pub(super) fn is_over(&self, who: &Credentials) -> bool {
        self.services
            .get(who.instance.service())
            .and_then(|service| service.floors.get(&who.instance.index()))
            .is_some_and(|floor| who.generation < *floor)
    }

    /// The instance with the fewest calls, among those that serve the method,
    /// are ready and have room; of equals the one that was not picked for the longest time.
    pub(super) fn pick(
        &mut self,
        callee: &Callee,
        method: &str,
        outstanding: impl Fn(Conn) -> usize,
    ) -> Pick {
        let name = &callee.service;
        let meant = |index: u32| callee.index.is_none_or(|only| only == index);
        let Some(service) = self.services.get_mut(name).filter(|service| service.known) else {
            return if self.settled {
                Pick::Refuse(not_found(name))
            } else {
                Pick::Park
            };
        };
        let mut serving = 0;
        let mut unready = 0;
        let mut open = 0;
        let mut best: Option<(usize, u64, u32)> = None;
        let entries = service.entries.iter();
        for (index, entry) in entries.filter(|(index, entry)| meant(**index) && !entry.draining) {
            open += 1;
            if !entry.methods.contains(method) {
                continue;
            }
            let ready = service.outlooks.get(index) != Some(&Outlook::Unready);
            if !ready && callee.index.is_none() {
                unready += 1;
                continue;
            }
            serving += 1;
            let calls = outstanding(entry.conn);
            let candidate = (calls, entry.picked, *index);
            if calls < entry.capacity as usize && best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        }
        if let Some((_, _, index)) = best
            && let Some(entry) = service.entries.get_mut(&index)
        {
            self.picks += 1;
            entry.picked = self.picks;
            return Pick::Instance(entry.conn);
        }
        if serving > 0 {
            let message = format!("all {serving} instances of {name} are at their capacity");
            return Pick::Refuse(Status::new(Code::ResourceExhausted, message));
        }
        if unready > 0 {
            return Pick::Park;
        }
        if open > 0 {
            let message = format!("{name} does not serve {method:?}");
            return Pick::Refuse(Status::new(Code::Unimplemented, message));
        }
        match service.hopeless(meant) {
            Some(reason) => {
                let message = format!("{name} is not there: {reason}");
                Pick::Refuse(Status::new(Code::Unavailable, message))
            }
            None => Pick::Park,
        }
    }

    /// Calls that wait for a service.
    pub(super) fn parked(&self, service: &ServiceName) -> usize {
        self.services
            .get(service)
            .map_or(0, |service| service.parked.len())
    }

    pub(super) fn park(&mut self, service: &ServiceName, call: CallId) {
        self.services
            .entry(service.clone())
            .or_default()
            .parked
            .push_back(call);
    }

    pub(super) fn unpark(&mut self, service: &ServiceName, call: CallId) {
        if let Some(known) = self.services.get_mut(service) {
            known.parked.retain(|parked| *parked != call);
            // Named by nobody but callers: not kept, or they could fill the memory.
            if !known.known && known.parked.is_empty() {
                self.services.remove(service);
            }
        }
    }
}

impl Service {
    /// Why none of the instances that are meant is to be expected, when that is so.
    fn hopeless(&self, meant: impl Fn(u32) -> bool) -> Option<&str> {
        let mut reason = None;
        for (_, outlook) in self.outlooks.iter().filter(|(index, _)| meant(**index)) {
            match outlook {
                Outlook::Coming | Outlook::Unready => return None,
                Outlook::Hopeless { reason: why } => reason = reason.or(Some(why.as_str())),
            }
        }
        reason
    }
}

fn not_found(service: &ServiceName) -> Status {
    Status::new(Code::NotFound, format!("there is no service {service}"))
}
