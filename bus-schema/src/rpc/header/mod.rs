//! Headers: the first frame of every message of the RPC plane, a MessagePack
//! map with named fields. Unknown fields are ignored; a header of an unknown
//! kind is skipped by its receiver.

use serde::{Deserialize, Serialize};

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

/// A header. Which way each goes: C is a service's connection, B the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
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
    Request(Request),
    /// C → B: the result of a call that this connection was sent. B → C: the
    /// result of a call it made. The payload is the result when the code is `ok`.
    Response(Response),
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
        service: String,
    },
    /// C → B: send no more calls, the ones under way are still answered.
    /// B → C: the bridge ends, or this connection is not wanted.
    Goaway {
        /// Why, for a person.
        reason: String,
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
}

/// See [`Header::Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the sender, unique among its calls under way.
    pub id: u64,
    /// The service called, or one instance of it, see [`Callee`]. The bridge
    /// leaves it out: the receiver knows its own.
    pub service: String,
    /// The method.
    pub method: String,
    /// Time left for the answer, in milliseconds, counted by the receiver's
    /// monotonic clock; `None` is [`super::DEFAULT_BUDGET`].
    pub budget_ms: Option<u64>,
    /// B → C: who calls, as its token proved.
    pub caller: Option<InstanceName>,
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
pub struct Response {
    /// The id of the request.
    pub id: u64,
    /// What became of it.
    pub code: Code,
    /// For a person, where the code is not `ok`.
    pub message: String,
    /// Answer to [`Header::Resolve`].
    pub endpoints: Vec<Endpoint>,
}

impl Response {
    /// A response without endpoints.
    pub fn new(id: u64, result: Result<(), Status>) -> Self {
        let (code, message) = match result {
            Ok(()) => (Code::Ok, String::new()),
            Err(status) => (status.code, status.message),
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
            code => Err(Status::new(code, self.message.clone())),
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    caller: Option<InstanceName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    reason: Option<&'a str>,
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl Header {
    /// The name of its kind on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Registered(_) => "registered",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Request(_) => "request",
            Self::Response(_) => "response",
            Self::Cancel { .. } => "cancel",
            Self::Resolve { .. } => "resolve",
            Self::Goaway { .. } => "goaway",
        }
    }

    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
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
                caller: request.caller.clone(),
                ..wire
            },
            Self::Response(response) => Wire {
                id: Some(response.id),
                code: Some(response.code),
                message: some(&response.message),
                endpoints: response.endpoints.clone(),
                ..wire
            },
            Self::Cancel { id } => Wire {
                id: Some(*id),
                ..wire
            },
            Self::Resolve { id, service } => Wire {
                id: Some(*id),
                service: Some(service),
                ..wire
            },
            Self::Goaway { reason } => Wire {
                reason: some(reason),
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
    pub fn decode(frame: &[u8]) -> Result<Self, HeaderError> {
        if frame.len() > MAX_HEADER_BYTES {
            return Err(HeaderError::TooLong { bytes: frame.len() });
        }
        let wire: Wire<'_> = rmp_serde::from_slice(frame)?;
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
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
            }),
            "heartbeat" => Self::Heartbeat {
                registered: wire.registered,
            },
            "request" => Self::Request(Request {
                id: need("request", "id", wire.id)?,
                service: text(wire.service),
                method: need("request", "method", wire.method)?.to_owned(),
                budget_ms: wire.budget_ms,
                caller: wire.caller,
            }),
            "response" => Self::Response(Response {
                id: need("response", "id", wire.id)?,
                code: need("response", "code", wire.code)?,
                message: text(wire.message),
                endpoints: wire.endpoints,
            }),
            "cancel" => Self::Cancel {
                id: need("cancel", "id", wire.id)?,
            },
            "resolve" => Self::Resolve {
                id: need("resolve", "id", wire.id)?,
                service: need("resolve", "service", wire.service)?.to_owned(),
            },
            "goaway" => Self::Goaway {
                reason: text(wire.reason),
            },
            other => {
                return Err(HeaderError::UnknownKind(other.chars().take(40).collect()));
            }
        })
    }
}

fn need<T>(kind: &'static str, field: &'static str, value: Option<T>) -> Result<T, HeaderError> {
    value.ok_or(HeaderError::Missing { kind, field })
}

#[cfg(test)]
mod tests;
