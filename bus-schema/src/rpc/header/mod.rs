//! Headers: the first frame of every message of the RPC plane, a MessagePack
//! map with named fields. Unknown fields are ignored; a header of an unknown
//! kind is skipped by its receiver.

mod fast;

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

use crate::names::{InstanceName, NameError, ServiceName};
use crate::reply::{Code, Status};

/// Version of this protocol, told in `register`.
pub const VERSION: u8 = 1;
/// Longest header accepted, in bytes: a registration of a thousand methods fits.
pub const MAX_HEADER_BYTES: usize = 128 * 1024;
/// Most methods of one registration.
pub const MAX_METHODS: usize = 1024;
/// Longest name of a method, in bytes.
pub const MAX_METHOD_BYTES: usize = 200;
/// Longest [`Request::trace`], in bytes; a longer one is left out.
pub const MAX_TRACE_BYTES: usize = 256;
/// Largest [`Request::window`], in bytes; a larger one is cut to it.
pub const MAX_WINDOW: u32 = 4 * 1024 * 1024;
/// Largest part of a streamed answer, in bytes.
pub const MAX_PART_BYTES: usize = 1024 * 1024;
/// Parts of one streamed answer that may be out and not acknowledged by credit,
/// however small they are.
pub const MAX_PARTS: usize = 4096;

/// A header. Which way each goes: C is a service's connection, B the bridge.
///
/// The texts of the frequent kinds borrow from the frame that they were decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header<'a> {
    /// C → B: serve these methods from now on. Sent on every new connection,
    /// and again to change them. A service that only calls need not send it.
    Register(Register),
    /// B → C: registered.
    Registered(Registered),
    /// C → B: still here, every [`Registered::heartbeat_ms`]. B → C: the answer.
    Heartbeat {
        /// In the answer: whether the connection is registered. When it is not
        /// (the bridge was restarted), register again.
        registered: Option<bool>,
    },
    /// C → B: call a service. B → C: a call for you.
    Request(Request<'a>),
    /// C → B: the result of a call that this connection was sent. B → C: the
    /// result of a call it made. The payload is the result when the code is `ok`;
    /// of a streamed answer it is the last part, if it is not empty.
    Response(Response<'a>),
    /// C → B → C: a part of a streamed answer, only to a request with a window.
    /// The payload has at most [`MAX_PART_BYTES`].
    Part {
        /// The id of the request, as the receiver or sender knows it.
        id: u64,
    },
    /// C → B → C, from the caller to the callee: so many more bytes of a
    /// streamed answer may be sent.
    Credit {
        /// The id of the request.
        id: u64,
        /// Length of the parts that were taken.
        bytes: u32,
    },
    /// C → B: the caller gave up. B → C: the call's result is no longer wanted.
    Cancel {
        /// The id of the request, as the receiver knows it.
        id: u64,
    },
    /// C → B: where are the instances of a service that offer an endpoint of
    /// their own? Answered with a [`Response`] that has `endpoints`.
    Resolve {
        /// Chosen by the sender, as in a request.
        id: u64,
        /// Which service.
        service: Cow<'a, str>,
    },
    /// C → B: send no more calls, the ones under way are still answered.
    /// B → C: finish what you have, no new calls will come on this connection.
    Goaway {
        /// Why, for a person.
        reason: Cow<'a, str>,
        /// B → C: the bridge ends. New calls are to wait for its successor.
        ends: bool,
    },
}

/// See [`Header::Register`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Register {
    /// [`VERSION`] of the sender.
    pub version: u8,
    /// Methods that are served; empty for a service that only calls.
    pub methods: Vec<String>,
    /// Calls worked on at one time; `None` is [`super::DEFAULT_CAPACITY`].
    pub capacity: Option<u32>,
    /// An endpoint of its own for direct calls.
    pub endpoint: Option<String>,
}

/// See [`Header::Registered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// [`VERSION`] of the bridge.
    pub version: u8,
    /// The bridge's incarnation.
    pub incarnation: u64,
    /// Heartbeats are expected at this interval, in milliseconds.
    pub heartbeat_ms: u64,
    /// Where the registration named an endpoint: what the tickets of direct
    /// callers are checked with, see [`super::DirectKey`].
    pub direct_key: Option<String>,
}

/// See [`Header::Request`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Chosen by the sender, unique among its calls under way.
    pub id: u64,
    /// The service called, or one instance of it, see [`Callee`]. The bridge
    /// leaves it out: the receiver knows its own.
    pub service: Cow<'a, str>,
    /// The method.
    pub method: Cow<'a, str>,
    /// Time left for the answer, in milliseconds, counted by the receiver's
    /// monotonic clock; `None` is [`super::DEFAULT_BUDGET`].
    pub budget_ms: Option<u64>,
    /// B → C: the instance that calls, as its token proved.
    pub caller: Option<Cow<'a, str>>,
    /// Tracing context, a W3C `traceparent`; passed on unread.
    pub trace: Option<Cow<'a, str>>,
    /// The caller takes a streamed answer and has room for this many bytes of it.
    pub window: Option<u32>,
}

/// Who is called: the text of [`Request::service`].
///
/// ```
/// use blackhole_bus_schema::rpc::header::Callee;
/// let callee: Callee = "pricing".parse().unwrap();
/// assert_eq!((callee.service.as_str(), callee.index), ("pricing", None));
/// let callee: Callee = "pricing.2".parse().unwrap();
/// assert_eq!((callee.service.as_str(), callee.index), ("pricing", Some(2)));
/// assert!("pricing.x".parse::<Callee>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callee {
    /// The service.
    pub service: ServiceName,
    /// The index of the only instance that is meant; `None`: whichever has the
    /// fewest calls.
    pub index: Option<u32>,
}

impl std::str::FromStr for Callee {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text.contains('.') {
            return Ok(Self {
                service: text.parse()?,
                index: None,
            });
        }
        let instance: InstanceName = text.parse()?;
        Ok(Self {
            service: instance.service().clone(),
            index: Some(instance.index()),
        })
    }
}

/// See [`Header::Response`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response<'a> {
    /// The id of the request.
    pub id: u64,
    /// What became of it.
    pub code: Code,
    /// For a person, where the code is not `ok`.
    pub message: Cow<'a, str>,
    /// Answer to [`Header::Resolve`].
    pub endpoints: Vec<Endpoint>,
}

impl Response<'_> {
    /// A response without endpoints.
    pub fn new(id: u64, result: Result<(), Status>) -> Self {
        let (code, message) = match result {
            Ok(()) => (Code::Ok, Cow::Borrowed("")),
            Err(status) => (status.code, Cow::Owned(status.message)),
        };
        Self {
            id,
            code,
            message,
            endpoints: Vec::new(),
        }
    }

    /// The status, unless the code is `ok`.
    pub fn status(&self) -> Result<(), Status> {
        match self.code {
            Code::Ok => Ok(()),
            code => Err(Status::new(code, self.message.as_ref())),
        }
    }
}

/// An instance's own endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Whose.
    pub instance: InstanceName,
    /// For instance `tcp://127.0.0.1:9001`; its form is between the services.
    pub endpoint: String,
    /// What proves the asker to it, see [`super::DirectKey`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// Why a header is not understood.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Longer than [`MAX_HEADER_BYTES`].
    #[error("a header of {bytes} bytes, at most {MAX_HEADER_BYTES} are taken")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not MessagePack, or fields of a wrong type.
    #[error("not a header")]
    Decode(#[from] rmp_serde::decode::Error),
    /// A kind that this version does not know.
    #[error("unknown kind {0:?}")]
    UnknownKind(String),
    /// A field that this kind needs is not there.
    #[error("a {kind} without {field}")]
    Missing {
        /// Which kind.
        kind: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// All fields of all kinds, as they travel. Decoding borrows from the frame.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    kind: &'a str,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget_ms: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u32>,
    #[serde(
        default,
        deserialize_with = "some_code",
        skip_serializing_if = "Option::is_none"
    )]
    code: Option<Code>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<Endpoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u8>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    methods: Option<Vec<&'a str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capacity: Option<u32>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incarnation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heartbeat_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registered: Option<bool>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    direct_key: Option<&'a str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends: Option<bool>,
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl<'a> Header<'a> {
    /// The name of its kind on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Registered(_) => "registered",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Request(_) => "request",
            Self::Response(_) => "response",
            Self::Part { .. } => "part",
            Self::Credit { .. } => "credit",
            Self::Cancel { .. } => "cancel",
            Self::Resolve { .. } => "resolve",
            Self::Goaway { .. } => "goaway",
        }
    }

    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.encode_into(&mut frame);
        frame
    }

    /// Appends the frame.
    pub fn encode_into(&self, frame: &mut Vec<u8>) {
        if !fast::encode(self, frame) {
            frame.extend_from_slice(&self.encode_any());
        }
    }

    fn encode_any(&self) -> Vec<u8> {
        let wire = Wire {
            kind: self.kind(),
            ..Wire::default()
        };
        let wire = match self {
            Self::Register(register) => Wire {
                version: Some(register.version),
                methods: Some(register.methods.iter().map(String::as_str).collect()),
                capacity: register.capacity,
                endpoint: register.endpoint.as_deref(),
                ..wire
            },
            Self::Registered(registered) => Wire {
                version: Some(registered.version),
                incarnation: Some(registered.incarnation),
                heartbeat_ms: Some(registered.heartbeat_ms),
                direct_key: registered.direct_key.as_deref(),
                ..wire
            },
            Self::Heartbeat { registered } => Wire {
                registered: *registered,
                ..wire
            },
            Self::Request(request) => Wire {
                id: Some(request.id),
                service: some(&request.service),
                method: Some(&request.method),
                budget_ms: request.budget_ms,
                caller: request.caller.as_deref(),
                trace: request.trace.as_deref(),
                window: request.window,
                ..wire
            },
            Self::Response(response) => Wire {
                id: Some(response.id),
                code: Some(response.code),
                message: some(&response.message),
                endpoints: response.endpoints.clone(),
                ..wire
            },
            Self::Cancel { id } | Self::Part { id } => Wire {
                id: Some(*id),
                ..wire
            },
            Self::Credit { id, bytes } => Wire {
                id: Some(*id),
                bytes: Some(*bytes),
                ..wire
            },
            Self::Resolve { id, service } => Wire {
                id: Some(*id),
                service: Some(service),
                ..wire
            },
            Self::Goaway { reason, ends } => Wire {
                reason: some(reason),
                ends: ends.then_some(true),
                ..wire
            },
        };
        // Into memory, out of types that MessagePack knows: it cannot fail.
        rmp_serde::to_vec_named(&wire).unwrap_or_default()
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// See [`HeaderError`]. A frame with an unknown kind is to be skipped.
    pub fn decode(frame: &'a [u8]) -> Result<Self, HeaderError> {
        if frame.len() > MAX_HEADER_BYTES {
            return Err(HeaderError::TooLong { bytes: frame.len() });
        }
        match fast::decode(frame) {
            Some(header) => Ok(header),
            None => Self::decode_any(frame),
        }
    }

    /// Any kind, with a reason where it is not one.
    fn decode_any(frame: &'a [u8]) -> Result<Self, HeaderError> {
        let wire: Wire<'a> = rmp_serde::from_slice(frame)?;
        let text = |text: Option<&'a str>| Cow::Borrowed(text.unwrap_or_default());
        Ok(match wire.kind {
            "register" => Self::Register(Register {
                version: wire.version.unwrap_or(VERSION),
                methods: wire
                    .methods
                    .unwrap_or_default()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                capacity: wire.capacity,
                endpoint: wire.endpoint.map(str::to_owned),
            }),
            "registered" => Self::Registered(Registered {
                version: wire.version.unwrap_or(VERSION),
                incarnation: need("registered", "incarnation", wire.incarnation)?,
                heartbeat_ms: need("registered", "heartbeat_ms", wire.heartbeat_ms)?,
                direct_key: wire.direct_key.map(str::to_owned),
            }),
            "heartbeat" => Self::Heartbeat {
                registered: wire.registered,
            },
            "request" => Self::Request(Request {
                id: need("request", "id", wire.id)?,
                service: text(wire.service),
                method: need("request", "method", wire.method)?.into(),
                budget_ms: wire.budget_ms,
                caller: wire.caller.map(Cow::Borrowed),
                trace: wire.trace.map(Cow::Borrowed),
                window: wire.window,
            }),
            "response" => Self::Response(Response {
                id: need("response", "id", wire.id)?,
                code: need("response", "code", wire.code)?,
                message: text(wire.message),
                endpoints: wire.endpoints,
            }),
            "part" => Self::Part {
                id: need("part", "id", wire.id)?,
            },
            "credit" => Self::Credit {
                id: need("credit", "id", wire.id)?,
                bytes: need("credit", "bytes", wire.bytes)?,
            },
            "cancel" => Self::Cancel {
                id: need("cancel", "id", wire.id)?,
            },
            "resolve" => Self::Resolve {
                id: need("resolve", "id", wire.id)?,
                service: need("resolve", "service", wire.service)?.into(),
            },
            "goaway" => Self::Goaway {
                reason: text(wire.reason),
                ends: wire.ends.unwrap_or_default(),
            },
            other => {
                return Err(HeaderError::UnknownKind(other.chars().take(40).collect()));
            }
        })
    }
}

/// The code of a response, see [`crate::reply::known_code`].
fn some_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Code>, D::Error> {
    struct Known(Code);
    impl<'de> Deserialize<'de> for Known {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            crate::reply::known_code(deserializer).map(Self)
        }
    }
    Ok(Option::<Known>::deserialize(deserializer)?.map(|known| known.0))
}

fn need<T>(kind: &'static str, field: &'static str, value: Option<T>) -> Result<T, HeaderError> {
    value.ok_or(HeaderError::Missing { kind, field })
}

#[cfg(test)]
mod tests;
