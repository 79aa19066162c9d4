//! Services whose process-manager nobody runs.

use std::collections::BTreeMap;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::managers;
use blackhole_bus_schema::names::{Component, InstanceName, ManagerName};
use blackhole_process_manager::shim::client::instance_lock_held;

use crate::client;

/// The named process-managers that do not live, with what lives on of theirs.
pub(super) fn orphans(dirs: &Dirs) -> BTreeMap<ManagerName, Vec<InstanceName>> {
    let mut found: BTreeMap<ManagerName, Vec<InstanceName>> = BTreeMap::new();
    for (instance, name) in managers::owned(dirs) {
        let held = instance_lock_held(&dirs.instance(&instance));
        if held.is_ok_and(|held| held.is_some()) {
            found.entry(name).or_default().push(instance);
        }
    }
    found.retain(|name, instances| {
        instances.sort();
        !client::lives(dirs, &Component::ProcessManager(Some(name.clone())))
    });
    found
}
