//! Replies: what became of a command. They travel on `rep.<client>.` of the
//! component that was asked.

use std::fmt;

use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::message::Message;
use crate::raw::Raw;

/// Status codes: gRPC's canonical ones (github.com/grpc/grpc/blob/master/doc/statuscodes.md),
/// for commands on the bus and for calls between services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Done.
    Ok,
    /// The caller gave up.
    Cancelled,
    /// No better code fits.
    Unknown,
    /// The request itself is wrong.
    InvalidArgument,
    /// The budget was spent.
    DeadlineExceeded,
    /// No such thing.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// Not allowed.
    PermissionDenied,
    /// Refused for want of a resource; the message has the numbers.
    ResourceExhausted,
    /// The state of things does not allow it now.
    FailedPrecondition,
    /// Given up half-way, safe to try again from the start.
    Aborted,
    /// Past the end.
    OutOfRange,
    /// Not known here.
    Unimplemented,
    /// A fault of this program.
    Internal,
    /// Not there now; try again later.
    Unavailable,
    /// Lost for good.
    DataLoss,
    /// The caller is not who it says.
    Unauthenticated,
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let debug = format!("{self:?}");
        let mut out = String::with_capacity(debug.len() + 4);
        for (index, character) in debug.chars().enumerate() {
            if character.is_ascii_uppercase() && index > 0 {
                out.push('_');
            }
            out.push(character.to_ascii_uppercase());
        }
        formatter.pad(&out)
    }
}

/// A code by its name; one that this version does not know is [`Code::Unknown`].
pub(crate) fn known_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
    let name = String::deserialize(deserializer)?;
    let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        name.as_str().into_deserializer();
    Ok(Code::deserialize(name).unwrap_or(Code::Unknown))
}

/// A refusal or failure, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// Which kind. One that this version does not know is [`Code::Unknown`].
    #[serde(deserialize_with = "known_code")]
    pub code: Code,
    /// For a person.
    pub message: String,
}

impl Status {
    /// A status with this code and text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Verdict {
    /// Received, being worked on; another reply follows.
    Accepted {},
    /// Done.
    Done {
        /// The command's own result.
        result: Raw,
    },
    /// Refused or failed.
    Failed {
        /// Why.
        #[serde(flatten)]
        error: Status,
    },
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reply {
    /// The `id` of the command.
    pub to: Uuid,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Without the copies that serde makes of what is flattened.
impl<'de> Deserialize<'de> for Reply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Which {
            Accepted,
            Done,
            Failed,
        }
        #[derive(Deserialize)]
        struct Fields {
            to: Uuid,
            status: Which,
            #[serde(default, deserialize_with = "present")]
            result: Option<Raw>,
            #[serde(default, deserialize_with = "maybe_code")]
            code: Option<Code>,
            message: Option<String>,
        }
        let Fields {
            to,
            status,
            result,
            code,
            message,
        } = Fields::deserialize(deserializer)?;
        let verdict = match status {
            Which::Accepted => Verdict::Accepted {},
            Which::Done => Verdict::Done {
                result: result.ok_or_else(|| serde::de::Error::missing_field("result"))?,
            },
            Which::Failed => {
                let missing = serde::de::Error::missing_field;
                let code = code.ok_or_else(|| missing("code"))?;
                let message = message.ok_or_else(|| missing("message"))?;
                Verdict::Failed {
                    error: Status { code, message },
                }
            }
        };
        Ok(Self { to, verdict })
    }
}

/// An `Option` alone takes nil for none: the result of a command that has no more to say.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Raw>, D::Error> {
    Raw::deserialize(deserializer).map(Some)
}

fn maybe_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Code>, D::Error> {
    known_code(deserializer).map(Some)
}

/// A [`Reply`] that says what came of a command, written in one go.
#[derive(Debug, Serialize)]
pub(crate) struct DoneReply<'a, R> {
    to: Uuid,
    status: &'static str,
    result: &'a R,
}

impl<'a, R> DoneReply<'a, R> {
    pub(crate) fn of(to: Uuid, result: &'a R) -> Self {
        Self {
            to,
            status: "done",
            result,
        }
    }
}

impl Message for Reply {
    const KIND: &'static str = "reply";
}
