//! Commands that come again. A client repeats a command under its id until it
//! is answered, also to the successor of a supervisor that died over it. The id
//! is written down with what the command changes, so that it takes effect once:
//! a repetition only waits for what the first one began.

use super::Core;
use super::io::{Action, Operator};
use super::saved::Change;

/// Most ids kept. A client repeats for as long as its budget lasts, minutes:
/// whoever has given more commands than this meanwhile is not repeating one.
const MOST: usize = 4096;

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
        self.commands.insert(id);
        self.persist(Change::Command(id));
        while self.commands.len() > MOST {
            if let Some(oldest) = self.commands.pop_first() {
                self.persist(Change::RemoveCommand(oldest));
            }
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
