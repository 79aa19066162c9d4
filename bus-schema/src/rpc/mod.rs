//! The RPC plane: calls between services, carried by the bridge.
//!
//! A service connects a DEALER to the bridge's ROUTER at `BLACKHOLE_RPC` with
//! PLAIN authentication (RFC 24): its username is `BLACKHOLE_INSTANCE`, its
//! password `BLACKHOLE_TOKEN`. It must not set a routing id. A message is two
//! frames, `[header][payload]`; see [`header`] for the first, the second is
//! opaque.
//!
//! ```text
//!   caller                     bridge                      callee
//!     │ request {id 7, service,  │                            │
//!     │   method, budget_ms}     │ request {id b, method,     │
//!     ├─────────────────────────►│   caller, budget_ms left}  │
//!     │                          ├───────────────────────────►│
//!     │                          │     response {id b, code}  │
//!     │   response {id 7, code}  │◄───────────────────────────┤
//!     │◄─────────────────────────┤                            │
//! ```
//!
//! A service in Rust uses [`Client`]; one in another language needs a ZeroMQ
//! and a MessagePack library.

mod client;
mod endpoint;
pub mod header;
mod token;
pub mod trace;

pub use crate::reply::{Code, Status};
pub use client::{
    Answers, CallBuilder, Client, ClientError, ConnectOptions, DEFAULT_WINDOW, Direct, Handler,
    Methods, Parts, Request, StreamHandler,
};
pub use endpoint::{DirectEndpoint, EndpointError, direct_dirs};
pub use token::{Credentials, DirectKey, Key, TICKET_VALID, TokenError, environment, token};

use std::time::Duration;

/// Budget of a call that names none.
pub const DEFAULT_BUDGET: Duration = Duration::from_secs(30);
/// Longest budget honoured; a longer one is cut to it.
pub const MAX_BUDGET: Duration = Duration::from_secs(24 * 3600);
/// Calls of one caller that may be under way; more are refused with `ResourceExhausted`.
pub const MAX_CALLS: usize = 1024;
/// Calls that one connection works on when its registration names no capacity.
pub const DEFAULT_CAPACITY: u32 = 256;
/// Largest capacity that a registration can name.
pub const MAX_CAPACITY: u32 = 4096;
/// Time between the heartbeats that a registered connection sends.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// The directory of the sockets on which services take direct calls, beside the
/// bridge's own socket. The bridge makes it, with mode 1777.
pub fn direct_dir(bridge_socket: &std::path::Path) -> std::path::PathBuf {
    bridge_socket.with_file_name("d")
}
