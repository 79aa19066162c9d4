//! The vocabulary of Blackhole: what travels on its bus, how it is named,
//! how it is configured, and the clients that speak it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`names`] | validated names: services, instances, components, clients |
//! | [`envelope`] | the two frames of a message and the fields around every body |
//! | [`message`] | the traits that tie a `kind` to a body and a command to its reply |
//! | [`process`], [`limits`], [`resource`], [`supervision`], [`health`], [`registry`], [`component`], [`reply`] | one noun each: the bodies |
//! | [`topic`] | topics and prefixes |
//! | [`rpc`] | headers, status codes, tokens and the client of the RPC plane |
//! | [`config`] | `blackhole.yaml`, its errors, and the effective settings of a service |
//! | [`dirs`] | run and state directories, locks, incarnations |
//! | [`managers`] | which process-managers there are, and whose an instance is |
//! | [`regular`], [`secret`] | files that are known to be files; keys in the state directory |
//! | [`raw`], [`value`] | MessagePack values of unknown shape: as bytes, as trees |
//! | [`transport`] | the only place that knows the ZeroMQ library |
//! | [`bus`] | a component's own sockets, and connections to others |
//! | [`daemon`] | what every daemon's `main` does: flags, tracing, notification |
//! | [`priority`], [`pulse`], [`memory`] | being quick, and no burden, on a host: slices, common ticks, memory given back |

pub mod bus;
pub mod component;
pub mod config;
pub mod daemon;
pub mod dirs;
pub mod envelope;
pub mod health;
pub mod limits;
pub mod managers;
pub mod memory;
pub mod message;
pub mod names;
pub mod priority;
pub mod process;
pub mod pulse;
pub mod raw;
pub mod registry;
pub mod regular;
pub mod reply;
pub mod resource;
pub mod rpc;
pub mod secret;
pub mod supervision;
pub mod topic;
pub mod transport;
pub mod value;

/// Version of this build, as shown by `blackhole status` and in each hello.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
