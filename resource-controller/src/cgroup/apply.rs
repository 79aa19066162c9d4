//! Applying limits to one instance's groups and reading them back.
//!
//! `cgroups-rs` writes what it writes well (CPU, memory, pids); I/O weights,
//! `memory.oom.group` and every read go to the files directly. A report is
//! never made from what was written, only from what the kernel says afterwards.

use std::path::{Path, PathBuf};

use blackhole_bus_schema::limits::{Enforcement, LimitKind, LimitReport, Limits};
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::convert::{self, CPU_PERIOD_USEC, WeightRange};
use super::file::{self, chain};
use super::io_effect::IoEffect;
use super::parse::{self, Amount};

/// Where a controller's files of one instance are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In this v1 group.
    V1(PathBuf),
    /// In this v2 group.
    V2(PathBuf),
    /// Nowhere, with the reason.
    Missing(String),
}

impl Place {
    fn parts(&self) -> Result<(&Path, bool), String> {
        match self {
            Self::V1(dir) => Ok((dir, false)),
            Self::V2(dir) => Ok((dir, true)),
            Self::Missing(reason) => Err(reason.clone()),
        }
    }
}

/// The four controllers' places.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) cpu: Place,
    pub(super) memory: Place,
    pub(super) io: Place,
    pub(super) pids: Place,
}

/// Applies all limits and reports each that was asked for. A limit that is not
/// asked for is taken away where an earlier one stands.
pub(super) fn apply(places: &Places, limits: &Limits, effect: &IoEffect) -> Vec<LimitReport> {
    [
        cpu(&places.cpu, limits.cpu_percent),
        cpu_weight(&places.cpu, limits.cpu_weight),
        memory(&places.memory, limits.memory_bytes),
        io_weight(&places.io, limits.io_weight, effect),
        pids(&places.pids, limits.pids),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The weight that asks for nothing special.
const NORMAL: u32 = 100;

/// What the kernel holds now; `None` is "no limit".
type ReadBack = Result<Option<u64>, String>;

/// How a value that was read back is judged.
struct Judge {
    limit: LimitKind,
    requested: u64,
    /// Kernel rounding that still counts as the same value.
    same: fn(u64, u64) -> bool,
    /// A value left from before is worth something (a limit), or not (a weight).
    old_value_counts: bool,
    /// Why it holds only in part although the value is right.
    reserve: Option<String>,
}

impl Judge {
    fn new(limit: LimitKind, requested: u64) -> Self {
        Self {
            limit,
            requested,
            same: |a, b| a == b,
            old_value_counts: true,
            reserve: None,
        }
    }

    fn report(self, written: Result<(), String>, read_back: ReadBack) -> Option<LimitReport> {
        let actual = read_back.as_ref().ok().copied().flatten();
        let holds = actual.is_some_and(|actual| (self.same)(self.requested, actual));
        let enforcement = match (written, read_back) {
            (_, Ok(Some(_))) if holds => match self.reserve {
                None => Enforcement::Enforced,
                Some(reason) => Enforcement::Partly { reason },
            },
            (Ok(()), Ok(Some(actual))) => Enforcement::Partly {
                reason: format!("the kernel made it {actual}"),
            },
            (Ok(()), Ok(None)) => Enforcement::NotEnforced {
                reason: "reads back as unlimited".to_owned(),
            },
            (Err(reason), Ok(Some(actual))) if self.old_value_counts => Enforcement::Partly {
                reason: format!("{actual} stands from before: {reason}"),
            },
            (Err(reason), _) => Enforcement::NotEnforced { reason },
            (Ok(()), Err(reason)) => Enforcement::NotEnforced {
                reason: format!("cannot be read back: {reason}"),
            },
        };
        Some(LimitReport {
            limit: self.limit,
            requested: self.requested,
            actual,
            enforcement,
        })
    }
}

/// An error of `cgroups-rs` on one line; its own text shows the cause as debug output.
fn refused(error: &cgroups_rs::fs::error::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{}{}", error.kind(), cause.unwrap_or_default())
}

/// `cgroups-rs` opens with O_CREAT, which turns a missing file into "permission denied".
fn require(dir: &Path, name: &str) -> Result<(), String> {
    if dir.join(name).exists() {
        Ok(())
    } else {
        Err(format!("the kernel has no {name} in {}", dir.display()))
    }
}

fn read_amount(dir: &Path, name: &str) -> Result<Amount, String> {
    file::read_as(&dir.join(name), parse::amount).map_err(|error| chain(&error))
}

/// CPU bandwidth: v1 `cpu.cfs_quota_us` and `cpu.cfs_period_us`, v2 `cpu.max`.
fn cpu(place: &Place, percent: Option<u32>) -> Option<LimitReport> {
    let (dir, v2) = match place.parts() {
        Ok(parts) => parts,
        Err(reason) => return missing(LimitKind::Cpu, percent.map(u64::from), reason),
    };
    let read = || -> Result<(Amount, u64), String> {
        if v2 {
            return file::read_as(&dir.join("cpu.max"), parse::cpu_max).map_err(|e| chain(&e));
        }
        let period = file::read_as(&dir.join("cpu.cfs_period_us"), parse::number);
        Ok((
            read_amount(dir, "cpu.cfs_quota_us")?,
            period.map_err(|error| chain(&error))?,
        ))
    };
    let controller = CpuController::new(dir.to_owned(), dir.to_owned(), v2);
    let Some(percent) = percent else {
        if !matches!(read(), Ok((Amount::Limited(_), _))) {
            return None;
        }
        return lifted(
            LimitKind::Cpu,
            controller.set_cfs_quota(-1).map_err(|e| refused(&e)),
        );
    };
    let written = require(dir, if v2 { "cpu.max" } else { "cpu.cfs_quota_us" }).and_then(|()| {
        // A period that is right already is not written: on v1 it may be
        // refused in a group whose parent has a quota.
        let period = (!matches!(read(), Ok((_, CPU_PERIOD_USEC)))).then_some(CPU_PERIOD_USEC);
        let quota = convert::cpu_quota(percent) as i64;
        if let Some(period) = period.filter(|_| !v2) {
            controller
                .set_cfs_period(period)
                .map_err(|error| refused(&error))?;
        }
        controller
            .set_cfs_quota_and_period(Some(quota), period.filter(|_| v2))
            .map_err(|error| refused(&error))
    });
    let read_back = read().map(|(quota, period)| {
        quota
            .limited()
            .map(|quota| convert::cpu_percent(quota, period))
    });
    Judge::new(LimitKind::Cpu, percent.into()).report(written, read_back)
}

/// CPU weight: v1 `cpu.shares`, v2 `cpu.weight`.
fn cpu_weight(place: &Place, weight: Option<u32>) -> Option<LimitReport> {
    let (dir, v2) = match place.parts() {
        Ok(parts) => parts,
        Err(reason) => return missing(LimitKind::CpuWeight, weight.map(u64::from), reason),
    };
    let name = if v2 { "cpu.weight" } else { "cpu.shares" };
    let value = |weight: u32| {
        if v2 {
            weight.into()
        } else {
            convert::weight_to_shares(weight)
        }
    };
    let read = || file::read_as(&dir.join(name), parse::number).map_err(|error| chain(&error));
    let controller = CpuController::new(dir.to_owned(), dir.to_owned(), v2);
    let write = |value: u64| {
        controller
            .set_shares(value)
            .map_err(|error| refused(&error))
    };
    let Some(weight) = weight else {
        let normal = value(NORMAL);
        if read().is_ok_and(|now| now != normal) {
            return lifted(LimitKind::CpuWeight, write(normal));
        }
        return None;
    };
    let written = require(dir, name).and_then(|()| write(value(weight)));
    let read_back = read().map(|now| {
        Some(if v2 {
            now
        } else {
            convert::shares_to_weight(now)
        })
    });
    let mut judge = Judge::new(LimitKind::CpuWeight, weight.into());
    judge.old_value_counts = false;
    judge.report(written, read_back)
}

/// Memory. v1: `memory.limit_in_bytes`, and `memory.memsw.limit_in_bytes` at the
/// same value. v2: `memory.max`, no swap (`memory.swap.max` 0: otherwise a leak
/// would eat the host's swap before it meets its limit), and the whole group
/// is killed at once (`memory.oom.group`), so that no half of a service is left.
fn memory(place: &Place, bytes: Option<u64>) -> Option<LimitReport> {
    let (dir, v2) = match place.parts() {
        Ok(parts) => parts,
        Err(reason) => return missing(LimitKind::Memory, bytes, reason),
    };
    let (limit_file, swap_file) = if v2 {
        ("memory.max", "memory.swap.max")
    } else {
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    };
    let controller = MemController::new(dir.to_owned(), dir.to_owned(), v2);
    let set_limit = |value: i64| controller.set_limit(value).map_err(|error| refused(&error));
    let set_swap = |value: i64| {
        require(dir, swap_file)?;
        controller
            .set_memswap_limit(value)
            .map_err(|error| refused(&error))
    };
    let now = read_amount(dir, limit_file);
    let Some(bytes) = bytes else {
        if !matches!(now, Ok(Amount::Limited(_))) {
            return None;
        }
        // v1 keeps limit ≤ memsw at every moment: raise the outer one first.
        let swap = set_swap(-1);
        return lifted(
            LimitKind::Memory,
            set_limit(-1).and(swap.or_else(tolerate_no_swap)),
        );
    };
    let value = i64::try_from(bytes).unwrap_or(i64::MAX);
    let swap_value = if v2 { 0 } else { value };
    let raising = matches!(now, Ok(Amount::Limited(old)) if old < bytes);
    let (written, swap) = if let Err(reason) = require(dir, limit_file) {
        (Err(reason), Ok(()))
    } else if raising {
        let swap = set_swap(swap_value);
        (set_limit(value), swap)
    } else {
        let written = set_limit(value);
        (written, set_swap(swap_value))
    };
    if v2 && let Err(error) = file::write(&dir.join("memory.oom.group"), "1") {
        // Linux before 4.19: one process is killed instead of all, as on v1.
        tracing::debug!(error = chain(&error), "no group kill at out-of-memory");
    }
    let swap_read = read_amount(dir, swap_file);
    let expected = if v2 { 0 } else { bytes };
    let swap_holds = matches!(swap_read, Ok(Amount::Limited(now)) if same_pages(expected, now));
    let mut judge = Judge::new(LimitKind::Memory, bytes);
    judge.same = same_pages;
    if !swap_holds && host_has_swap() {
        let reason = swap
            .err()
            .unwrap_or_else(|| format!("{swap_file} does not hold"));
        judge.reserve = Some(format!("swap is not limited: {reason}"));
    }
    judge.report(written, read_amount(dir, limit_file).map(Amount::limited))
}

/// The kernel rounds down to whole pages.
fn same_pages(requested: u64, actual: u64) -> bool {
    actual <= requested && requested - actual < rustix::param::page_size() as u64
}

fn host_has_swap() -> bool {
    file::read(Path::new("/proc/swaps")).is_ok_and(|text| text.lines().count() > 1)
}

fn tolerate_no_swap(reason: String) -> Result<(), String> {
    if host_has_swap() { Err(reason) } else { Ok(()) }
}

/// `pids.max`, the same on both.
fn pids(place: &Place, most: Option<u32>) -> Option<LimitReport> {
    let dir = match place.parts() {
        Ok((dir, _)) => dir,
        Err(reason) => return missing(LimitKind::Pids, most.map(u64::from), reason),
    };
    let read = || read_amount(dir, "pids.max");
    let controller = PidController::new(dir.to_owned(), dir.to_owned(), false);
    let write = |value: MaxValue| {
        controller
            .set_pid_max(value)
            .map_err(|error| refused(&error))
    };
    let Some(most) = most else {
        if !matches!(read(), Ok(Amount::Limited(_))) {
            return None;
        }
        return lifted(LimitKind::Pids, write(MaxValue::Max));
    };
    let written = require(dir, "pids.max").and_then(|()| write(MaxValue::Value(i64::from(most))));
    Judge::new(LimitKind::Pids, most.into()).report(written, read().map(Amount::limited))
}

/// I/O weight. `cgroups-rs` cannot write it on either version.
///
/// v1 has `blkio.bfq.weight`, or `blkio.weight` of the CFQ scheduler before
/// Linux 5. On v2 `io.bfq.weight` works with the BFQ scheduler and `io.weight`
/// with the io.cost controller; both are written where they are. A weight whose
/// mechanism is at work on no device is reported as held in part; the normal
/// weight (100) asks for nothing special and is not reported so; where no weights
/// exist at all, it holds as far as all weigh the same.
fn io_weight(place: &Place, weight: Option<u32>, effect: &IoEffect) -> Option<LimitReport> {
    const V1: [(&str, WeightRange); 2] = [
        ("blkio.bfq.weight", WeightRange::BFQ),
        ("blkio.weight", WeightRange::CFQ),
    ];
    const V2: [(&str, WeightRange); 2] = [
        ("io.bfq.weight", WeightRange::BFQ),
        ("io.weight", WeightRange::IO),
    ];
    let requested = weight.map(u64::from);
    let (dir, v2) = match place.parts() {
        Ok(parts) => parts,
        Err(reason) => return missing(LimitKind::IoWeight, requested, reason),
    };
    let present: Vec<_> = if v2 { V2 } else { V1 }
        .into_iter()
        .filter(|(name, _)| dir.join(name).exists())
        .collect();
    // The one that decides is reported: CFQ and io.cost only where they are at work.
    let Some((name, range)) = present
        .iter()
        .find(|(name, _)| !v2 || effect.works(name))
        .or(present.first())
        .copied()
    else {
        let names = if v2 { V2 } else { V1 }.map(|(name, _)| name).join(" nor ");
        let reason = format!("the kernel has neither {names} in {}", dir.display());
        if weight == Some(NORMAL) {
            let enforcement = Enforcement::Partly {
                reason: format!("{reason}; all groups weigh the same"),
            };
            let actual = None;
            return Some(LimitReport {
                limit: LimitKind::IoWeight,
                requested: NORMAL.into(),
                actual,
                enforcement,
            });
        }
        return missing(LimitKind::IoWeight, requested, reason);
    };
    let write = |weight: u32| {
        let mut result = Ok(());
        for (other, range) in &present {
            let value = range.value(weight).to_string();
            let written = file::write(&dir.join(other), &value).map_err(|error| chain(&error));
            if *other == name {
                result = written;
            }
        }
        result
    };
    let read = || file::read_as(&dir.join(name), default_weight).map_err(|error| chain(&error));
    let Some(weight) = weight else {
        if read().is_ok_and(|now| now != range.normal) {
            return lifted(LimitKind::IoWeight, write(NORMAL));
        }
        return None;
    };
    let written = write(weight);
    let mut judge = Judge::new(LimitKind::IoWeight, weight.into());
    judge.old_value_counts = false;
    judge.reserve = if weight == 100 {
        None
    } else {
        effect.reserve(name)
    };
    judge.report(written, read().map(|value| Some(range.weight(value))))
}

/// `100`, or `default 100` before lines for single devices.
fn default_weight(text: &str) -> Option<u64> {
    let first = text.lines().next()?;
    parse::number(first.strip_prefix("default ").unwrap_or(first))
}

/// The report for a limit without a place; none where none was asked for.
fn missing(limit: LimitKind, requested: Option<u64>, reason: String) -> Option<LimitReport> {
    let requested = requested?;
    let enforcement = Enforcement::NotEnforced { reason };
    Some(LimitReport {
        limit,
        requested,
        actual: None,
        enforcement,
    })
}

/// A limit that was to be taken away. There is no line for it in a report, so
/// a failure is logged: the service then lives with a limit nobody asked for.
fn lifted(limit: LimitKind, result: Result<(), String>) -> Option<LimitReport> {
    if let Err(reason) = result {
        tracing::warn!(?limit, reason, "an earlier limit could not be lifted");
    }
    None
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
