//! The bus: brokerless publish/subscribe between components.
//!
//! Every component binds two sockets ([`Server`]): `<component>.evt` (PUB: its
//! events and its replies) and `<component>.cmd` (SUB: commands to it). Whoever
//! wants to listen or to command opens a [`Link`] to it.
//!
//! ```text
//!   Link                                   Server
//!   request ──PUB──▶ <component>.cmd ──SUB──▶ dispatcher ──mpsc──▶ Incoming
//!     ▲                                          │ reply cache        │ reply
//!     │                                          ▼                    ▼
//!   events  ◀──SUB── <component>.evt ◀──PUB── publisher ◀──mpsc── publish
//! ```
//!
//! Nothing is lost silently: each message on a counted topic carries a `seq`;
//! a subscriber that sees a gap, another incarnation, or a heartbeat whose
//! [`tails`] differ from its own asks the owner for a snapshot.

mod counters;
mod lane;
mod link;
mod server;
pub mod tails;

use crate::message::{Command, Snapshot};
use crate::process::{InstanceRecord, ListProcesses};
use crate::raw::Raw;
use crate::registry::{CallStats, ListCalls, ListRegistry, Registration};
use crate::reply::{Code, Status};
use crate::resource::{ListUsage, Usage};
use crate::supervision::{InstanceStatus, ListStatus};
use crate::transport::TransportError;

pub use lane::LogLane;
pub use link::{Interest, Link, LinkEvent, Received};
pub use server::tcp::{self, TcpError};
pub use server::{Incoming, Server};

/// A fault of the bus itself.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A socket could not be opened or has closed.
    #[error("bus socket")]
    Transport(#[from] TransportError),
    /// The bus over TCP.
    #[error("the bus over TCP")]
    Tcp(#[from] TcpError),
    /// A message could not be written.
    #[error("cannot encode a {kind} message")]
    Encode {
        /// Its kind.
        kind: &'static str,
        /// Why.
        #[source]
        source: rmp_serde::encode::Error,
    },
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The component refused it or failed.
    #[error("{0}")]
    Status(#[from] Status),
    /// The component did not answer at all: it does not run, or hangs.
    #[error("{component} is not reachable")]
    Unreachable {
        /// Who was asked.
        component: String,
    },
    /// The budget was spent.
    #[error("{component} has not finished in time{}", if *.accepted { " (it goes on with it)" } else { "" })]
    TimedOut {
        /// Who was asked.
        component: String,
        /// Whether it had accepted the command.
        accepted: bool,
    },
    /// The bus itself failed.
    #[error("the bus failed")]
    Bus(#[source] BusError),
    /// The answer is not what this command is answered with: versions differ.
    #[error("the answer of {component} is not understood: are both of one version?")]
    Answer {
        /// Who answered.
        component: String,
        /// What does not fit.
        #[source]
        source: rmp_serde::decode::Error,
    },
}

impl RequestError {
    /// The nearest status code.
    pub fn code(&self) -> Code {
        match self {
            Self::Status(status) => status.code,
            Self::Unreachable { .. } => Code::Unavailable,
            Self::TimedOut { .. } => Code::DeadlineExceeded,
            Self::Bus(_) | Self::Answer { .. } => Code::Internal,
        }
    }
}

/// A command whose answer is a page of its owner's state.
pub trait Paged: Command<Reply = Snapshot<Self::Item>> {
    /// What the state consists of.
    type Item: serde::Serialize + serde::de::DeserializeOwned + Send + 'static;

    /// The command for the page after the one that ended with `after`.
    fn page(after: Option<String>) -> Self;

    /// The same for somebody who follows the stream from here on.
    fn stream_page(after: Option<String>) -> Self {
        Self::page(after)
    }
}

macro_rules! paged {
    ($command:ty, $item:ty) => {
        impl Paged for $command {
            type Item = $item;
            fn page(after: Option<String>) -> Self {
                Self { after }
            }
        }
    };
}

impl Paged for ListProcesses {
    type Item = InstanceRecord;
    fn page(after: Option<String>) -> Self {
        Self {
            after,
            probes: false,
        }
    }
    fn stream_page(after: Option<String>) -> Self {
        Self {
            after,
            probes: true,
        }
    }
}

paged!(ListStatus, InstanceStatus);
paged!(ListUsage, Usage);
paged!(ListRegistry, Registration);
paged!(ListCalls, CallStats);

/// One item of a [`LinkEvent::Snapshot`].
///
/// # Errors
/// When the owner is of another version.
pub fn item<T: serde::de::DeserializeOwned>(value: Raw) -> Result<T, rmp_serde::decode::Error> {
    value.parse()
}

/// The beginning of a text that somebody else wrote, for a log.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests;
