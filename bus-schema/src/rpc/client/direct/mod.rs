//! Direct calls: without the bridge on the way.
//!
//! The callee binds a ROUTER of its own, registers its address with the bridge,
//! and is told a key. A caller resolves the service by the bridge and gets
//! addresses and tickets; a ticket is checked by the callee alone. So a direct
//! connection, once made, needs no bridge, and outlives its restarts.

mod callee;
mod caller;
mod patience;
mod presence;

pub(super) use callee::Socket;
pub use caller::Direct;
pub(super) use caller::Pool;

/// Messages taken before anything else has a turn.
const BURST: usize = 64;
