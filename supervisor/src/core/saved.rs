//! What survives the supervisor: plain rows, without behaviour.

use blackhole_bus_schema::names::{Generation, InstanceName, ManagerName, ServiceName};
use blackhole_bus_schema::process::ExitRecord;
use blackhole_bus_schema::supervision::{Circuit, Desired};
use uuid::Uuid;

/// What is remembered of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedService {
    /// Its name.
    pub name: ServiceName,
    /// What an operator said is wanted of it; `None`: what the configuration says.
    pub wish: Option<Desired>,
    /// What it needed when it was last configured, so that it can be stopped
    /// in order even when it has gone from the configuration.
    pub requires: Vec<ServiceName>,
}

/// What is remembered of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedInstance {
    /// Its name.
    pub instance: InstanceName,
    /// The process-manager that was last asked to start it; `None`: the one without a name.
    pub manager: Option<ManagerName>,
    /// The latest spawn decision.
    pub generation: Generation,
    /// All spawns up to this one are known to be over.
    pub ended: Generation,
    /// The ends of all spawns up to this one were asked for here and are no failures.
    pub asked: Generation,
    /// Spawns up to this one are to end and others to follow: a restart is under way.
    pub bounce: Generation,
    /// Spawns up to this one are to be replaced in their turn by the rolling
    /// restart under way; 0 without one.
    pub roll: Generation,
    /// The latest spawn that was seen ready.
    pub ready: Generation,
    /// Restarts in a row.
    pub attempts: u32,
    /// Position in the row of waits.
    pub step: u32,
    /// Restarts after failures since an operator last started or reset it.
    pub restarts: u32,
    /// Its circuit.
    pub circuit: Circuit,
    /// When the circuit opened, Unix time in nanoseconds.
    pub opened_at: Option<u64>,
    /// A restart is due then, Unix time in nanoseconds.
    pub restart_at: Option<u64>,
    /// It ended and its policy does not start it again.
    pub spent: bool,
    /// A one-shot that is through.
    pub completed: bool,
    /// How it last ended.
    pub last_exit: Option<ExitRecord>,
    /// Why it last could not be started.
    pub last_error: Option<String>,
}

impl SavedInstance {
    /// One that has never been started.
    pub fn new(instance: InstanceName) -> Self {
        Self {
            instance,
            manager: None,
            generation: Generation::default(),
            ended: Generation::default(),
            asked: Generation::default(),
            bounce: Generation::default(),
            roll: Generation::default(),
            ready: Generation::default(),
            attempts: 0,
            step: 0,
            restarts: 0,
            circuit: Circuit::Closed,
            opened_at: None,
            restart_at: None,
            spent: false,
            completed: false,
            last_exit: None,
            last_error: None,
        }
    }
}

/// One change of what is remembered. Each is complete in itself: written twice
/// it does no harm, and of two for one name the later one counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A service is so.
    Service(SavedService),
    /// An instance is so.
    Instance(Box<SavedInstance>),
    /// A service is forgotten.
    RemoveService(ServiceName),
    /// An instance is forgotten.
    RemoveInstance(InstanceName),
    /// A command of an operator has taken effect; repeated under this id, also
    /// to the next supervisor, it does so no more.
    Command(Uuid),
    /// So many commands have come since that nobody repeats this one.
    RemoveCommand(Uuid),
}

/// All that an earlier run left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Services.
    pub services: Vec<SavedService>,
    /// Instances.
    pub instances: Vec<SavedInstance>,
    /// Commands that have taken effect.
    pub commands: Vec<Uuid>,
    /// The host was restarted since: what was completed before is to be done again.
    pub rebooted: bool,
}

impl Restored {
    /// Applies one change, as a database would.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(row) => {
                self.services.retain(|old| old.name != row.name);
                self.services.push(row);
            }
            Change::Instance(row) => {
                self.instances.retain(|old| old.instance != row.instance);
                self.instances.push(*row);
            }
            Change::RemoveService(name) => self.services.retain(|old| old.name != name),
            Change::RemoveInstance(name) => self.instances.retain(|old| old.instance != name),
            Change::Command(id) => {
                self.commands.retain(|old| *old != id);
                self.commands.push(id);
            }
            Change::RemoveCommand(id) => self.commands.retain(|old| *old != id),
        }
    }
}
