//! Calls between two services through the bridge, beside the same messages over
//! bare sockets of the same transport and beside a Unix socket. Callers, bridge
//! and callees are processes of their own, see `blackhole_benches::subjects`.
//!
//! Criterion measures one after the other. For ratios to trust on a busy host
//! there is `cargo bench --bench rpc -- --table`, which measures all in turn.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use blackhole_benches::peers::{Placement, Round};
use blackhole_benches::program;
use blackhole_benches::subjects::{Kind, LOADS, SIZES, Subject};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};

fn calls(c: &mut Criterion) {
    for placement in Placement::ALL {
        for (callers, in_flight) in LOADS {
            let name = format!("rpc, {}, {callers} × {in_flight}", placement.name());
            let mut group = c.benchmark_group(name);
            for kind in Kind::ALL.into_iter().filter(|kind| kind.can(in_flight)) {
                let temp = tempfile::tempdir().unwrap();
                let mut subject = None;
                for (bytes, size) in SIZES {
                    group.throughput(Throughput::Elements(callers as u64));
                    group.sample_size(10);
                    group.bench_function(BenchmarkId::new(kind.name(), size), |b| {
                        // Started only when a filter lets it be measured.
                        let subject = subject.get_or_insert_with(|| {
                            Subject::start(kind, placement, callers, temp.path())
                        });
                        b.iter_custom(|calls| {
                            let calls = usize::try_from(calls).unwrap();
                            let round = Round {
                                calls,
                                in_flight,
                                bytes,
                            };
                            subject.round(round).elapsed
                        });
                    });
                }
            }
            group.finish();
        }
    }
}

criterion_group!(benches, calls);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--table") {
        let rest = arguments[at + 1..].iter().filter(|word| *word != "--bench");
        let status = Command::new(program("rpc-table")).args(rest).status();
        assert!(status.unwrap().success());
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
