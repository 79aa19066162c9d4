//! Named process-managers that nobody keeps and the supervisor waits for: of what
//! they had when the host went down only they can tell the end, and only they
//! forget what was removed from the configuration together with them. A keeper
//! runs them, as it runs those of the configuration.

use blackhole_bus_schema::names::{Component, ManagerName};
use tokio::time::Instant;

use super::super::machine::Machine;
use super::{Keeper, Takeover};
use crate::keeper_file::KeeperFile;
use crate::out::Tone;

impl Keeper {
    /// Starts, from the next step on, the process-managers that the supervisor
    /// waits for and that do not live. Nothing follows from one that does not
    /// come up: it is tried again like any daemon, and holds up nobody else.
    pub(in crate::up) async fn run_awaited(&mut self) {
        if self.launch.is_none() {
            return;
        }
        for name in self.watch.model.awaited_managers() {
            let component = Component::ProcessManager(Some(name.clone()));
            match self.index(&component) {
                // Somebody else's that lives is somebody else's.
                Some(index) => {
                    let daemon = &mut self.daemons[index];
                    if daemon.kept || daemon.process.is_some() {
                        continue;
                    }
                    daemon.machine = Machine::new(Instant::now());
                    daemon.kept = true;
                    daemon.awaited = true;
                }
                None => {
                    if let Err(error) = self.watch.add(component.clone()).await {
                        self.report
                            .say(&component.to_string(), Tone::Bad, &error.report());
                        continue;
                    }
                    self.take(component.clone(), true, Takeover::Adopt);
                    if let Some(daemon) = self.daemons.last_mut() {
                        daemon.awaited = true;
                    }
                }
            }
            self.report.say(
                &component.to_string(),
                Tone::Warn,
                "is in no configuration and has something that is not settled: it is run too",
            );
            self.note_kept(name);
        }
    }

    /// Lets the commands and the keeper after this one know of it.
    fn note_kept(&self, name: ManagerName) {
        let Some(mut file) = KeeperFile::read(&self.dirs) else {
            return;
        };
        if !file.managers.contains(&name) {
            file.managers.push(name);
            if let Err(error) = file.write(&self.dirs) {
                crate::out::note(error.report());
            }
        }
    }
}
