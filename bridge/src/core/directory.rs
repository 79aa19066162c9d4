//! What is known of services: who is registered, what is to be expected of
//! those who are not, and the calls that wait for them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::{Generation, InstanceName, ServiceName};
use blackhole_bus_schema::rpc::header::{Endpoint, MAX_METHODS};
use blackhole_bus_schema::rpc::{Code, Credentials, Status};

use super::Conn;
use super::calls::CallId;
use super::ids::IdMap;

/// A service, as a number.
pub(super) type ServiceId = u32;
/// A method of a service, as a number.
pub(super) type MethodId = u32;
/// All methods beyond the number of those that are told apart.
const OTHER_METHOD: MethodId = 0;
/// Methods that are told apart; those that a service once had are among them.
const MAX_METHOD_IDS: usize = 8192;
/// Of one service: as many as it can serve at one time.
const METHOD_IDS_OF_ONE: usize = MAX_METHODS;

/// How long others come first after an instance has refused a call as too many: direct
/// calls, which the bridge does not see, may fill it.
const FULL: Duration = Duration::from_millis(50);

/// A registered instance.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) conn: Conn,
    pub(super) generation: Generation,
    pub(super) methods: BTreeMap<Arc<str>, MethodId>,
    pub(super) capacity: u32,
    pub(super) endpoint: Option<String>,
    pub(super) draining: bool,
    /// When it was last picked, as a count of picks: ties go round.
    pub(super) picked: u64,
    /// Until when others come first, see [`FULL`].
    pub(super) full_until: Option<Instant>,
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
    Instance {
        conn: Conn,
        method: Arc<str>,
        method_id: MethodId,
    },
    Park,
    Refuse(Status),
}

#[derive(Debug)]
struct Service {
    name: ServiceName,
    /// Somebody who must know has named it: the configuration, a token, a component.
    known: bool,
    entries: BTreeMap<u32, Entry>,
    /// The oldest spawn of each instance that is not over.
    floors: BTreeMap<u32, Generation>,
    outlooks: BTreeMap<u32, Outlook>,
    /// Instances that have lived, unless the supervisor has taken them away since: those
    /// that it knows nothing of may come again as well.
    lived: BTreeSet<u32>,
    /// Spawns that an operator wants to have no more calls.
    drained: BTreeMap<u32, Generation>,
    parked: VecDeque<CallId>,
    /// Methods of it that have a number.
    numbered: usize,
}

impl Service {
    fn new(name: &ServiceName) -> Self {
        Self {
            name: name.clone(),
            known: false,
            entries: BTreeMap::new(),
            floors: BTreeMap::new(),
            outlooks: BTreeMap::new(),
            lived: BTreeSet::new(),
            drained: BTreeMap::new(),
            parked: VecDeque::new(),
            numbered: 0,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    services: IdMap<ServiceId, Service>,
    by_name: HashMap<Box<str>, ServiceId>,
    next_id: ServiceId,
    methods: HashMap<(ServiceId, Arc<str>), MethodId>,
    /// From 1, see `OTHER_METHOD`.
    method_names: Vec<(ServiceId, Arc<str>)>,
    /// Whether all who know of services have been heard.
    settled: bool,
    /// Whether the outlooks are all there are: the supervisor has told them all.
    judged: bool,
    picks: u64,
    /// Raised when `is_over` may have changed.
    version: u64,
}

impl Directory {
    pub(super) fn configured(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        for service in services {
            self.known(&service);
        }
    }

    /// Returns the calls that wait, to be dispatched again.
    pub(super) fn settle(&mut self) -> Vec<CallId> {
        self.settled = true;
        let unknown = self.services.values_mut().filter(|service| !service.known);
        let mut parked: Vec<CallId> = unknown
            .flat_map(|service| service.parked.drain(..))
            .collect();
        parked.sort_unstable();
        parked
    }

    /// Which version of [`Directory::is_over`] this is.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The service of this name, if anything is kept of it.
    pub(super) fn find(&self, name: &str) -> Option<ServiceId> {
        self.by_name.get(name).copied()
    }

    /// The service of this name, kept from now on.
    pub(super) fn find_or_keep(&mut self, name: &ServiceName) -> ServiceId {
        if let Some(id) = self.find(name.as_str()) {
            return id;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.by_name.insert(name.as_str().into(), id);
        self.services.insert(id, Service::new(name));
        id
    }

    /// The name of a service, for a person.
    pub(super) fn name(&self, service: ServiceId) -> &str {
        self.services
            .get(&service)
            .map_or("the service", |service| service.name.as_str())
    }

    fn get(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(&self.find(name.as_str())?)
    }

    fn get_mut(&mut self, name: &ServiceName) -> Option<&mut Service> {
        let id = self.find(name.as_str())?;
        self.services.get_mut(&id)
    }

    fn known(&mut self, name: &ServiceName) -> &mut Service {
        // Named by a token or a component: their number is that of real services.
        let id = self.find_or_keep(name);
        let service = self
            .services
            .entry(id)
            .or_insert_with(|| Service::new(name));
        service.known = true;
        service
    }

    /// The numbers of the methods of a registration.
    pub(super) fn number(
        &mut self,
        service: &ServiceName,
        methods: Vec<String>,
    ) -> BTreeMap<Arc<str>, MethodId> {
        let service = self.find_or_keep(service);
        let mut nobodys = 0;
        let numbered = self
            .services
            .get_mut(&service)
            .map_or(&mut nobodys, |service| &mut service.numbered);
        let number = |method: String| {
            let key = (service, Arc::<str>::from(method));
            if let Some(id) = self.methods.get(&key) {
                return (key.1, *id);
            }
            if self.method_names.len() >= MAX_METHOD_IDS || *numbered >= METHOD_IDS_OF_ONE {
                return (key.1, OTHER_METHOD);
            }
            *numbered += 1;
            self.method_names.push(key.clone());
            let id = MethodId::try_from(self.method_names.len()).unwrap_or(OTHER_METHOD);
            self.methods.insert(key.clone(), id);
            (key.1, id)
        };
        methods.into_iter().map(number).collect()
    }

    /// The service and the name of a method.
    pub(super) fn method(&self, id: MethodId) -> Option<(&str, &str)> {
        let (service, method) = self.method_names.get((id as usize).checked_sub(1)?)?;
        Some((self.name(*service), method))
    }

    /// Registers an instance, instead of an earlier connection of it. Returns
    /// whether others can tell it from what was there before, and the calls
    /// that waited for its service.
    pub(super) fn register(
        &mut self,
        instance: &InstanceName,
        mut entry: Entry,
    ) -> (bool, Vec<CallId>) {
        self.version += 1;
        let service = self.known(instance.service());
        service.lived.insert(instance.index());
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
        self.get_mut(instance.service())
            .is_some_and(|service| service.entries.remove(&instance.index()).is_some())
    }

    pub(super) fn entry(&self, instance: &InstanceName) -> Option<&Entry> {
        self.get(instance.service())?.entries.get(&instance.index())
    }

    pub(super) fn is_registered(&self, instance: &InstanceName, conn: Conn) -> bool {
        self.entry(instance).is_some_and(|entry| entry.conn == conn)
    }

    /// An instance answered that it has too many calls.
    pub(super) fn is_full(&mut self, now: Instant, instance: &InstanceName, conn: Conn) {
        let entry = self
            .get_mut(instance.service())
            .and_then(|service| service.entries.get_mut(&instance.index()));
        if let Some(entry) = entry.filter(|entry| entry.conn == conn) {
            entry.full_until = Some(now + FULL);
        }
    }

    /// Whether that changed something.
    pub(super) fn drain(&mut self, instance: &InstanceName, conn: Conn) -> bool {
        let entry = self
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
        self.services.values().flat_map(|service| {
            let entries = service.entries.iter();
            entries.map(move |(index, entry)| (&service.name, *index, entry))
        })
    }

    /// The endpoints of a service, with the generation of who is there.
    pub(super) fn endpoints(
        &self,
        service: &ServiceName,
    ) -> Result<Vec<(Endpoint, Generation)>, Status> {
        let Some(known) = self.get(service).filter(|service| service.known) else {
            return Err(not_found(service.as_str()));
        };
        let ready = |index: &u32| known.outlooks.get(index) != Some(&Outlook::Unready);
        let open = known
            .entries
            .iter()
            .filter(|(index, entry)| !entry.draining && ready(index));
        let endpoints = open.filter_map(|(index, entry)| {
            let endpoint = Endpoint {
                instance: InstanceName::new(service.clone(), *index)?,
                endpoint: entry.endpoint.clone()?,
                ticket: None,
            };
            Some((endpoint, entry.generation))
        });
        Ok(endpoints.collect())
    }

    pub(super) fn process(&mut self, report: &ProcessReport) {
        self.version += 1;
        let index = report.instance.index();
        let service = self.known(report.instance.service());
        if report.live {
            service.lived.insert(index);
        }
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

    /// [`Directory::outlook`] of all instances: any others are taken away. Returns
    /// all calls that waited.
    pub(super) fn outlooks(&mut self, all: Vec<(InstanceName, Outlook)>) -> Vec<CallId> {
        self.judged = true;
        let there: HashSet<InstanceName> = all.iter().map(|(name, _)| name.clone()).collect();
        let mut parked = Vec::new();
        for (instance, outlook) in all {
            parked.extend(self.outlook(&instance, outlook));
        }
        for service in self.services.values_mut() {
            let name = &service.name;
            let lived = &mut service.lived;
            service.outlooks.retain(|index, _| {
                let name = InstanceName::new(name.clone(), *index);
                let stays = name.is_some_and(|it| there.contains(&it));
                if !stays {
                    lived.remove(index);
                }
                stays
            });
            parked.extend(service.parked.drain(..));
        }
        parked.sort_unstable();
        parked
    }

    /// Nobody judges readiness any more: who is registered is ready. Returns
    /// the calls that waited.
    pub(super) fn unjudged(&mut self) -> Vec<CallId> {
        self.judged = false;
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
        self.get(who.instance.service())
            .and_then(|service| service.floors.get(&who.instance.index()))
            .is_some_and(|floor| who.generation < *floor)
    }

    /// The instance with the fewest calls, among those that serve the method,
    /// are ready and have room; of equals the one that was not picked for the longest time.
    /// One that has just refused a call as too many is taken when there is no other.
    pub(super) fn pick(
        &mut self,
        now: Instant,
        id: ServiceId,
        index: Option<u32>,
        method: &str,
        outstanding: impl Fn(Conn) -> usize,
    ) -> Pick {
        let meant = |other: u32| index.is_none_or(|only| only == other);
        let settled = self.settled;
        let Some(service) = self.services.get_mut(&id) else {
            return Pick::Refuse(not_found("the service"));
        };
        if !service.known {
            return if settled {
                Pick::Refuse(not_found(service.name.as_str()))
            } else {
                Pick::Park
            };
        }
        if self.judged && !service.has(meant) {
            return Pick::Refuse(match index {
                Some(index) => {
                    let message = format!("there is no instance {}.{index}", service.name);
                    Status::new(Code::NotFound, message)
                }
                None => not_found(service.name.as_str()),
            });
        }
        let mut serving = 0;
        let mut unready = 0;
        let mut open = 0;
        let mut best: Option<(bool, usize, u64, u32)> = None;
        let entries = service.entries.iter();
        for (at, entry) in entries.filter(|(at, entry)| meant(**at) && !entry.draining) {
            open += 1;
            if !entry.methods.contains_key(method) {
                continue;
            }
            let ready = service.outlooks.get(at) != Some(&Outlook::Unready);
            if !ready && index.is_none() {
                unready += 1;
                continue;
            }
            serving += 1;
            let calls = outstanding(entry.conn);
            let full = entry.full_until.is_some_and(|until| until > now);
            let candidate = (full, calls, entry.picked, *at);
            if calls < entry.capacity as usize && best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        }
        if let Some((.., at)) = best
            && let Some(entry) = service.entries.get_mut(&at)
            && let Some((method, method_id)) = entry.methods.get_key_value(method)
        {
            self.picks += 1;
            entry.picked = self.picks;
            return Pick::Instance {
                conn: entry.conn,
                method: method.clone(),
                method_id: *method_id,
            };
        }
        let name = &service.name;
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
    pub(super) fn parked(&self, service: ServiceId) -> usize {
        self.services
            .get(&service)
            .map_or(0, |service| service.parked.len())
    }

    pub(super) fn park(&mut self, service: ServiceId, call: CallId) {
        if let Some(service) = self.services.get_mut(&service) {
            service.parked.push_back(call);
        }
    }

    pub(super) fn unpark(&mut self, service: ServiceId, call: CallId) {
        if let Some(known) = self.services.get_mut(&service) {
            known.parked.retain(|parked| *parked != call);
        }
        self.forget_unknown(service);
    }

    /// Named by nobody but callers: not kept, or they could fill the memory.
    pub(super) fn forget_unknown(&mut self, service: ServiceId) {
        let useless = |service: &Service| !service.known && service.parked.is_empty();
        if self.services.get(&service).is_some_and(useless)
            && let Some(forgotten) = self.services.remove(&service)
        {
            self.by_name.remove(forgotten.name.as_str());
        }
    }
}

impl Service {
    /// Whether any of the instances that are meant exists, or may come again.
    fn has(&self, meant: impl Fn(u32) -> bool) -> bool {
        let there = self.outlooks.keys().chain(self.entries.keys());
        let mut all = there.chain(&self.lived);
        all.any(|index| meant(*index))
    }

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

fn not_found(service: &str) -> Status {
    Status::new(Code::NotFound, format!("there is no service {service}"))
}
