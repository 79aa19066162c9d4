//! Commands that come again. A client repeats a command under its id until it
//! is answered, also to the successor of a supervisor that died over it. The id
//! is written down with what the command changes, so that it takes effect once:
//! a repetition only waits for what the first one began.

use std::collections::{BTreeSet, VecDeque};

use uuid::Uuid;

use super::Core;
use super::io::{Action, Operator};
use super::saved::Change;

/// Most ids kept. A client repeats for as long as its budget lasts, minutes:
/// whoever has given more commands than this meanwhile is not repeating one.
const MOST: usize = 4096;

/// The latest commands that have taken effect. Ids are any 16 bytes: which is
/// the oldest is told by when they came.
#[derive(Debug, Clone, Default)]
pub(super) struct Remembered {
    ids: BTreeSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Remembered {
    /// Those of an earlier run, the oldest first.
    pub(super) fn new(ids: impl Iterator<Item = Uuid>) -> Self {
        let order: VecDeque<_> = ids.collect();
        Self {
            ids: order.iter().copied().collect(),
            order,
        }
    }

    pub(super) fn contains(&self, id: &Uuid) -> bool {
        self.ids.contains(id)
    }

    /// Adds one; gives back which one had to go for it.
    fn add(&mut self, id: Uuid) -> Option<Uuid> {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() <= MOST {
            return None;
        }
        let oldest = self.order.pop_front()?;
        self.ids.remove(&oldest);
        Some(oldest)
    }
}

impl Core {
    /// Whether this command has taken effect already.
    pub(super) fn is_repeated(&self, command: &Operator) -> bool {
        is_remembered(command) && self.cause.is_some_and(|id| self.commands.contains(&id))
    }

    /// Writes down that it has, with all that it changed, before anything is sent.
    pub(super) fn remember(&mut self, command: &Operator) {
        let names: Vec<_> = self.instances.keys().cloned().collect();
        for name in names {
            self.save(&name, false);
        }
        let Some(id) = self.cause.filter(|_| is_remembered(command)) else {
            return;
        };
        self.persist(Change::Command(id));
        if let Some(oldest) = self.commands.add(id) {
            self.persist(Change::RemoveCommand(oldest));
        }
    }

    fn persist(&mut self, change: Change) {
        self.actions.push(Action::Persist {
            change,
            durable: false,
        });
    }
}

/// A stop that the next run does not remember has to be given to it again.
fn is_remembered(command: &Operator) -> bool {
    !matches!(
        command,
        Operator::Stop {
            transient: true,
            ..
        }
    )
}
