//! What an attack may cost a bridge.

/// Bytes.
pub const MIB: u64 = 1024 * 1024;
/// What the bridge uses for the honest pair, its log and its bus, and what the
/// allocator keeps: measured below 12 MiB.
pub const SLACK: u64 = 24 * MIB;
/// Lines that a bridge logs which nobody attacks: measured 6 to 9.
pub const QUIET: usize = 16;
/// Lines for one offender: what it did, its registration, its end.
pub const ONCE: usize = 4;
/// Payload bytes of one caller's calls under way, and of one peer's answers
/// that wait to be sent: the bridge's bounds.
pub const OF_ONE_PEER: u64 = 64 * MIB;
