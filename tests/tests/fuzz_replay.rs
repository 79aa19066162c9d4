//! The fuzz targets on a stable compiler: over their seeds, and over random
//! bytes and mutated seeds. Whoever finds something with `cargo fuzz` puts its
//! input among the seeds.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let entries = std::fs::read_dir(directory.join(target)).unwrap();
    let mut seeds: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

fn target(name: &str) -> fn(&[u8]) {
    let found = fuzz::TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("no target {name}")).1
}

/// Every seed of every target, and each cut short at some places: what is read
/// from a socket or a disk may end anywhere.
#[test]
fn all_seeds() {
    for (name, target) in fuzz::TARGETS {
        for (path, bytes) in seeds(name) {
            eprintln!("{}", path.display());
            let step = 1 + bytes.len() / 50;
            for end in (0..bytes.len()).step_by(step) {
                run(target, bytes[..end].to_vec());
            }
            run(target, bytes);
        }
    }
}

/// Runs a target with the stack that a daemon's only thread has (8 MiB, the
/// usual limit of a main thread): without optimisation, a body of a thousand
/// nested arrays takes between 2 and 4 MiB of it.
fn run(target: fn(&[u8]), bytes: Vec<u8>) {
    let thread = std::thread::Builder::new().stack_size(8 * 1024 * 1024);
    let ended = thread.spawn(move || target(&bytes)).unwrap().join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// A seed with some bytes changed, taken out or put in.
fn mutated(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds: Vec<Vec<u8>> = seeds(target).into_iter().map(|(_, bytes)| bytes).collect();
    let change = (any::<prop::sample::Index>(), 0..3_u8, any::<u8>());
    (
        prop::sample::select(seeds),
        prop::collection::vec(change, 1..8),
    )
        .prop_map(|(mut bytes, changes)| {
            for (at, how, byte) in changes {
                match how {
                    0 if !bytes.is_empty() => {
                        let at = at.index(bytes.len());
                        bytes[at] = byte;
                    }
                    1 if !bytes.is_empty() => {
                        bytes.remove(at.index(bytes.len()));
                    }
                    _ => bytes.insert(at.index(bytes.len() + 1), byte),
                }
            }
            bytes
        })
}

macro_rules! random {
    ($($name:ident: $cases:literal, $longest:literal;)*) => {$(
        proptest! {
            #![proptest_config(ProptestConfig {
                cases: $cases, failure_persistence: None, ..ProptestConfig::default()
            })]
            #[test]
            fn $name(
                random in prop::collection::vec(any::<u8>(), 0..$longest),
                mutated in mutated(stringify!($name)),
            ) {
                let target = target(stringify!($name));
                run(target, random);
                run(target, mutated);
            }
        }
    )*};
}

random! {
    bridge_core: 300, 2_000;
    bus_message: 500, 600;
    config: 300, 300;
    names: 2_000, 80;
    record_file: 150, 300;
    rpc_header: 3_000, 200;
    shim_frames: 500, 300;
    token: 500, 120;
}
