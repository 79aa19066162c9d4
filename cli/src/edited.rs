//! Whether the configuration's file says something else than what the daemons
//! were started with.

use blackhole_bus_schema::config::{Changed, Difference, Kept};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Component, ServiceName};

use crate::view::changed::Edited;
use crate::view::component::Found;
use crate::view::service::ServiceRow;

/// Compares the files with what the daemons that run keep. `None` where none
/// differs and all processes have the settings of today; `now` is Unix time in nanoseconds.
pub fn find(dirs: &Dirs, found: &[Found], rows: &[ServiceRow], now: u64) -> Option<Edited> {
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
            true => older(&kept, rows, now),
            false => Vec::new(),
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

/// The services with processes that are older than their settings.
fn older(kept: &Kept, rows: &[ServiceRow], now: u64) -> Vec<ServiceName> {
    let mut older: Vec<ServiceName> = rows
        .iter()
        .filter_map(|row| {
            let started_at = now.saturating_sub(row.uptime_ms?.saturating_mul(1_000_000));
            let service = row.instance.service();
            (started_at < kept.since(service)).then(|| service.clone())
        })
        .collect();
    older.dedup();
    older
}
