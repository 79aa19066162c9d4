//! What is fuzzed: one function a target, each over bytes, each panicking when
//! what it promises does not hold. The same functions are run by
//! `tests/tests/fuzz_replay.rs` on a stable compiler over all seeds and over
//! random bytes.
//!
//! ```text
//! cargo install cargo-fuzz
//! cd tests/fuzz && cargo +nightly fuzz run bus_message corpus/bus_message seeds/bus_message
//! ```

mod core;
mod decode;

pub use self::core::bridge_core;
pub use decode::{bus_message, config, names, record_file, rpc_header, shim_frames, token};

/// What takes any bytes and must not panic.
pub type Target = fn(&[u8]);

/// All targets by name, for those who run them over files.
pub const TARGETS: [(&str, Target); 8] = [
    ("bridge_core", bridge_core),
    ("bus_message", bus_message),
    ("config", config),
    ("names", names),
    ("record_file", record_file),
    ("rpc_header", rpc_header),
    ("shim_frames", shim_frames),
    ("token", token),
];
