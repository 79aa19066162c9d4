//! Admission: what was promised to whom. Pure.
//!
//! The ledger is empty after a start. The supervisor repeats its requests when
//! the controller is back; an instance whose processes run is taken in whatever
//! the sums say, since its use is a fact.

use std::collections::BTreeMap;

use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::names::InstanceName;

use crate::cgroup::HostCapacity;

/// What an instance reserves. A request left out of the limits reserves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Request {
    /// In percent of one core.
    pub cpu_percent: u64,
    /// In bytes.
    pub memory_bytes: u64,
}

impl Request {
    /// The requests within limits.
    pub fn of(limits: &Limits) -> Self {
        Self {
            cpu_percent: limits.cpu_request_percent.unwrap_or(0).into(),
            memory_bytes: limits.memory_request_bytes.unwrap_or(0),
        }
    }
}

/// A request beyond what is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// CPU.
    #[error(
        "{instance} asks for {asked} % CPU, but {reserved} of {capacity} % are reserved by {others} other instances"
    )]
    Cpu {
        /// Who asks.
        instance: InstanceName,
        /// For how much, in percent of one core.
        asked: u64,
        /// Sum of the others.
        reserved: u64,
        /// What there is.
        capacity: u64,
        /// How many others there are.
        others: usize,
    },
    /// Memory.
    #[error(
        "{instance} asks for {} MiB of memory, but {} of {} MiB are reserved by {others} other instances",
        asked / MIB,
        reserved / MIB,
        capacity / MIB
    )]
    Memory {
        /// Who asks.
        instance: InstanceName,
        /// For how much, in bytes.
        asked: u64,
        /// Sum of the others.
        reserved: u64,
        /// What there is.
        capacity: u64,
        /// How many others there are.
        others: usize,
    },
}

const MIB: u64 = 1 << 20;

/// Who was promised what.
#[derive(Debug, Default)]
pub struct Ledger {
    requests: BTreeMap<InstanceName, Request>,
}

impl Ledger {
    /// Enters a request in place of the instance's earlier one, which is given
    /// back for [`Ledger::restore`]. `running`: its processes are there already.
    ///
    /// Only growth is checked: a request that asks for no more than it has is
    /// never refused, even where the capacity has shrunk below the sum.
    ///
    /// # Errors
    /// When the sums would exceed the capacity; nothing is changed then.
    pub fn admit(
        &mut self,
        instance: &InstanceName,
        request: Request,
        capacity: HostCapacity,
        running: bool,
    ) -> Result<Option<Request>, Refused> {
        let earlier = self.requests.get(instance).copied();
        let held = match earlier {
            Some(earlier) => earlier,
            None if running => request,
            None => Request::default(),
        };
        let sum = self.sum();
        let own = earlier.unwrap_or_default();
        let others = self.requests.len() - usize::from(earlier.is_some());
        let reserved = sum.cpu_percent - own.cpu_percent;
        if request.cpu_percent > held.cpu_percent
            && reserved.saturating_add(request.cpu_percent) > capacity.cpu_percent
        {
            return Err(Refused::Cpu {
                instance: instance.clone(),
                asked: request.cpu_percent,
                reserved,
                capacity: capacity.cpu_percent,
                others,
            });
        }
        let reserved = sum.memory_bytes - own.memory_bytes;
        if request.memory_bytes > held.memory_bytes
            && reserved.saturating_add(request.memory_bytes) > capacity.memory_bytes
        {
            return Err(Refused::Memory {
                instance: instance.clone(),
                asked: request.memory_bytes,
                reserved,
                capacity: capacity.memory_bytes,
                others,
            });
        }
        self.requests.insert(instance.clone(), request);
        Ok(earlier)
    }

    /// Undoes [`Ledger::admit`].
    pub fn restore(&mut self, instance: &InstanceName, earlier: Option<Request>) {
        match earlier {
            Some(request) => self.requests.insert(instance.clone(), request),
            None => self.requests.remove(instance),
        };
    }

    /// Forgets an instance.
    pub fn remove(&mut self, instance: &InstanceName) {
        self.requests.remove(instance);
    }

    /// The sum of all requests.
    pub fn sum(&self) -> Request {
        self.requests
            .values()
            .fold(Request::default(), |sum, request| Request {
                cpu_percent: sum.cpu_percent.saturating_add(request.cpu_percent),
                memory_bytes: sum.memory_bytes.saturating_add(request.memory_bytes),
            })
    }

    /// Number of admitted instances.
    pub fn instances(&self) -> usize {
        self.requests.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: HostCapacity = HostCapacity {
        cpu_percent: 200,
        memory_bytes: 1000 * MIB,
    };

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn request(cpu_percent: u64, mib: u64) -> Request {
        Request {
            cpu_percent,
            memory_bytes: mib * MIB,
        }
    }

    #[test]
    fn requests_add_up_and_the_refusal_has_the_numbers() {
        let mut ledger = Ledger::default();
        assert_eq!(
            ledger.admit(&name("a.1"), request(150, 100), CAPACITY, false),
            Ok(None)
        );
        let refused = ledger
            .admit(&name("b.1"), request(60, 0), CAPACITY, false)
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "b.1 asks for 60 % CPU, but 150 of 200 % are reserved by 1 other instances"
        );
        let refused = ledger
            .admit(&name("b.1"), request(50, 901), CAPACITY, false)
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "b.1 asks for 901 MiB of memory, but 100 of 1000 MiB are reserved by 1 other instances"
        );
        assert_eq!(ledger.instances(), 1);
        assert_eq!(
            ledger.admit(&name("b.1"), request(50, 900), CAPACITY, false),
            Ok(None)
        );
        assert_eq!(ledger.sum(), request(200, 1000));
        // Nothing left, but one that reserves nothing is welcome.
        assert_eq!(
            ledger.admit(&name("c.1"), request(0, 0), CAPACITY, false),
            Ok(None)
        );
        ledger.remove(&name("a.1"));
        assert_eq!(
            ledger.admit(&name("d.1"), request(150, 100), CAPACITY, false),
            Ok(None)
        );
    }

    #[test]
    fn a_repetition_counts_once_and_a_change_replaces() {
        let mut ledger = Ledger::default();
        for _ in 0..3 {
            ledger
                .admit(&name("a.1"), request(150, 0), CAPACITY, false)
                .unwrap();
        }
        assert_eq!(ledger.sum(), request(150, 0));
        let earlier = ledger
            .admit(&name("a.1"), request(200, 0), CAPACITY, false)
            .unwrap();
        assert_eq!(earlier, Some(request(150, 0)));
        ledger.restore(&name("a.1"), earlier);
        assert_eq!(ledger.sum(), request(150, 0));
        assert!(
            ledger
                .admit(&name("a.1"), request(201, 0), CAPACITY, false)
                .is_err()
        );
        assert_eq!(ledger.sum(), request(150, 0));
    }

    #[test]
    fn what_runs_is_taken_in_and_may_not_grow() {
        let mut ledger = Ledger::default();
        ledger
            .admit(&name("a.1"), request(150, 0), CAPACITY, false)
            .unwrap();
        ledger
            .admit(&name("b.1"), request(150, 0), CAPACITY, true)
            .unwrap();
        assert_eq!(ledger.sum(), request(300, 0));
        assert!(
            ledger
                .admit(&name("b.1"), request(151, 0), CAPACITY, true)
                .is_err()
        );
        assert!(
            ledger
                .admit(&name("b.1"), request(140, 0), CAPACITY, true)
                .is_ok()
        );
    }

    proptest! {
        /// Whatever is asked in whatever order, no more is promised than there is.
        #[test]
        fn never_more_than_there_is(
            asks in prop::collection::vec((0u32..6, 0u64..150, 0u64..700, any::<bool>()), 0..60)
        ) {
            let mut ledger = Ledger::default();
            for (index, cpu, mib, leaves) in asks {
                let instance = name(&format!("s.{}", index + 1));
                if leaves {
                    ledger.remove(&instance);
                } else {
                    let before = ledger.sum();
                    if ledger.admit(&instance, request(cpu, mib), CAPACITY, false).is_err() {
                        prop_assert_eq!(ledger.sum(), before);
                    }
                }
                prop_assert!(ledger.sum().cpu_percent <= CAPACITY.cpu_percent);
                prop_assert!(ledger.sum().memory_bytes <= CAPACITY.memory_bytes);
            }
        }
    }
}
