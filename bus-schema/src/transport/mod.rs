//! The only place that knows the ZeroMQ library. Everything else sees sockets
//! that send and receive frames.
//!
//! Traps of the library that this module and its users answer:
//! - a PUB's send never waits: past the high-water mark of a subscriber a message
//!   is dropped with success. [`crate::bus::Server`] counts each message of a topic, so
//!   that a subscriber sees the gap, and lets the I/O run every few sends.
//! - a connect returns before there is a path: [`crate::bus::Link`] proves it by an echo.

mod bus;
pub mod rpc;

pub use bus::{ConnectionWatch, LOOKED_FOR, PubSocket, SubSocket, SubscriberWatch, TransportError};

/// Largest message accepted, in bytes. A larger one ends its connection.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
