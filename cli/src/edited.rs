//! Whether the configuration's file says something else than what the daemons
//! were started with.

use blackhole_bus_schema::config::{Changed, Difference, Kept, ServiceConfig};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::limits::LimitKind;
use blackhole_bus_schema::names::{Component, ServiceName};
use blackhole_bus_schema::process::SpawnSpec;
use blackhole_process_manager::shim::client::read_record;

use crate::view::changed::Edited;
use crate::view::component::Found;
use crate::view::service::ServiceRow;

/// Compares the files with what the daemons that run keep. `None` where none
/// differs and all processes have the settings of today.
pub fn find(dirs: &Dirs, found: &[Found], rows: &[ServiceRow]) -> Option<Edited> {
    let mut edited: Option<Edited> = None;
    for found in found {
        let Some(info) = found.info() else { continue };
        let kept = Kept::read(dirs, &found.component);
        let Some(kept) = kept.filter(|kept| kept.incarnation == info.incarnation) else {
            continue;
        };
        let (mut changed, wrong) = match kept.difference() {
            Difference::None => (Changed::default(), None),
            Difference::Wrong(why) => (Changed::default(), Some(why)),
            Difference::Settings(changed) => (changed, None),
        };
        let decides = found.component == Component::Supervisor;
        if !decides {
            // It has no use for what the services say.
            changed = Changed {
                runtime: changed.runtime,
                ..Changed::default()
            };
        }
        let older = match decides {
            true if changed.is_empty() && wrong.is_none() => older(dirs, &kept, rows),
            _ => Vec::new(),
        };
        if changed.is_empty() && wrong.is_none() && older.is_empty() {
            continue;
        }
        match &mut edited {
            None => {
                edited = Some(Edited {
                    file: kept.path.clone(),
                    changed,
                    wrong,
                    older,
                });
            }
            Some(edited) => {
                edited.changed.runtime |= changed.runtime;
                edited.wrong = edited.wrong.take().or(wrong);
            }
        }
    }
    edited
}

/// The services of which something runs that was started with other settings than
/// the supervisor has, and nothing but a restart changes that.
fn older(dirs: &Dirs, kept: &Kept, rows: &[ServiceRow]) -> Vec<ServiceName> {
    let may = |row: &&ServiceRow| row.pid.is_some() && kept.has_changed(row.instance.service());
    let rows: Vec<&ServiceRow> = rows.iter().filter(may).collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let Ok(document) = kept.document() else {
        return Vec::new();
    };
    let of_before = |row: &&ServiceRow| {
        let service = document.config.services.get(row.instance.service());
        let record = read_record(&dirs.instance(&row.instance)).ok().flatten();
        let spec = record.and_then(|record| record.spec().ok());
        service
            .zip(spec)
            .is_some_and(|(service, spec)| differs(service, &spec))
    };
    let mut older: Vec<ServiceName> = rows
        .into_iter()
        .filter(of_before)
        .map(|row| row.instance.service().clone())
        .collect();
    older.dedup();
    older
}

/// Whether a process that was started with `spec` would be started with another one
/// today. What the supervisor itself goes by (restarts, dependencies) holds at once.
fn differs(service: &ServiceConfig, spec: &SpawnSpec) -> bool {
    let (instance, grant) = (spec.instance.clone(), spec.grant.clone());
    let mut today = service.spawn_spec(instance, spec.generation, grant, spec.restarts);
    today.permit.clone_from(&spec.permit);
    let limits = &service.limits;
    let asked = [
        (LimitKind::Cpu, limits.cpu_percent.map(u64::from)),
        (LimitKind::CpuWeight, limits.cpu_weight.map(u64::from)),
        (LimitKind::Memory, limits.memory_bytes),
        (LimitKind::IoWeight, limits.io_weight.map(u64::from)),
        (LimitKind::Pids, limits.pids.map(u64::from)),
    ];
    let other_limits = spec.grant.as_ref().is_some_and(|grant| {
        let granted = |kind| grant.report.iter().find(|line| line.limit == kind);
        let other = |(kind, asked)| granted(kind).map(|line| line.requested) != asked;
        asked.into_iter().any(other)
            || grant
                .oom_score_adj
                .is_some_and(|score| score != service.oom_score_adj)
    });
    today != *spec || other_limits
}
