//! A message on the bus is two frames: `[topic][envelope]`. The envelope is a
//! MessagePack map with named fields around a body of some `kind`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::message::Message;
use crate::names::ClientName;
use crate::raw::{Raw, extent};

/// Version of the envelope. Fields may be added without raising it.
pub const VERSION: u16 = 1;

/// Deepest nesting of maps and arrays that is decoded.
pub const MAX_DEPTH: usize = 64;

/// The key of the body, as MessagePack.
const BODY: &[u8] = b"\xa4body";

/// Nil.
const NIL: u8 = 0xc0;

/// Room for an envelope and a body of the usual size, in bytes.
const USUAL: usize = 1024;

/// Why bytes are not a message, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not a MessagePack map with the fields of an envelope.
    #[error("not an envelope")]
    Decode(#[source] rmp_serde::decode::Error),
    /// The envelope is of another version.
    #[error("envelope version {found} is not spoken here, only {VERSION}: update the older side")]
    Version {
        /// What it said.
        found: u16,
    },
    /// A body of another kind was asked for.
    #[error("a message of kind {found:?} is not a {expected:?}")]
    Kind {
        /// What it is.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// The body does not fit its kind.
    #[error("the body of a {kind:?} message is not understood")]
    Body {
        /// The kind.
        kind: String,
        /// What does not fit.
        #[source]
        source: rmp_serde::decode::Error,
    },
}

/// Who published a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `supervisor`, `process-manager.gpu`, or a client's name.
    pub component: String,
    /// Which of several of that name: the process id.
    pub instance: String,
    /// Raised with each start of that component; 0 for clients.
    pub incarnation: u64,
}

/// A received envelope. Fields it does not know are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u16,
    /// Unique; a command repeated with the same id is carried out once. UUIDv7 (RFC 9562).
    pub id: Uuid,
    /// When it was published, Unix time in nanoseconds; for people, not for decisions.
    pub at: u64,
    /// Who published it.
    pub source: Source,
    /// Counts the messages of this source on this topic, from 1; 0 on topics
    /// that are not counted (commands, replies, logs).
    #[serde(default)]
    pub seq: u64,
    /// The message that led to this one.
    #[serde(default)]
    pub cause: Option<Uuid>,
    /// Who is answered.
    #[serde(default)]
    pub reply_to: Option<ClientName>,
    /// Time left for a command, in milliseconds, counted from its arrival on the receiver's clock.
    #[serde(default)]
    pub budget_ms: Option<u64>,
    /// Which body.
    pub kind: String,
    /// The body.
    #[serde(default)]
    pub body: Raw,
}

/// Decodes what nests no deeper than [`MAX_DEPTH`]: ours do by a dozen, and each
/// level of a hostile one takes stack.
fn shallow<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut decoder)
}

/// The body of an envelope, and from where to where it is.
fn body(bytes: &[u8]) -> Option<(Raw, usize, usize)> {
    let (entries, mut at) = match bytes {
        [marker @ 0x80..=0x8f, ..] => (usize::from(marker & 0x0f), 1),
        [0xde, high, low, ..] => (usize::from(*high) << 8 | usize::from(*low), 3),
        _ => return None,
    };
    for _ in 0..entries {
        let key = bytes.get(at..)?;
        let is_body = key.starts_with(BODY);
        at += extent(key, MAX_DEPTH)?;
        let value = bytes.get(at..)?;
        if is_body {
            // As deep as the decoder goes: it counts the envelope, and the value itself.
            let (body, length) = Raw::first(value, MAX_DEPTH - 2)?;
            return Some((body, at, at + length));
        }
        at += extent(value, MAX_DEPTH)?;
    }
    None
}

impl Envelope {
    /// Decodes the second frame of a message.
    ///
    /// # Errors
    /// For anything but an envelope of this version. Never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        #[derive(Deserialize)]
        struct Head {
            v: u16,
        }
        match Self::of(bytes) {
            Ok(envelope) if envelope.v == VERSION => Ok(envelope),
            Ok(envelope) => Err(EnvelopeError::Version { found: envelope.v }),
            Err(error) => match shallow::<Head>(bytes) {
                Ok(head) if head.v != VERSION => Err(EnvelopeError::Version { found: head.v }),
                _ => Err(EnvelopeError::Decode(error)),
            },
        }
    }

    /// Decodes the fields around the body, which is taken over as it stands there.
    fn of(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        // What is not what it should be is for the decoder to say.
        let Some((body, from, to)) = body(bytes) else {
            return shallow(bytes);
        };
        let (before, after) = (bytes.get(..from), bytes.get(to..));
        let head = [
            before.unwrap_or_default(),
            &[NIL],
            after.unwrap_or_default(),
        ]
        .concat();
        let mut envelope: Self = shallow(&head)?;
        envelope.body = body;
        Ok(envelope)
    }

    /// The body as the type of its kind.
    ///
    /// # Errors
    /// When the kind is another, or the body does not fit.
    pub fn parse<M: Message>(&self) -> Result<M, EnvelopeError> {
        if self.kind != M::KIND {
            return Err(EnvelopeError::Kind {
                found: self.kind.clone(),
                expected: M::KIND,
            });
        }
        self.body.parse().map_err(|source| EnvelopeError::Body {
            kind: self.kind.clone(),
            source,
        })
    }
}

/// An envelope to be sent, with its typed body.
#[derive(Debug, Serialize)]
pub struct Outgoing<'a, M> {
    /// See [`Envelope`].
    pub v: u16,
    /// See [`Envelope`].
    pub id: Uuid,
    /// See [`Envelope`].
    pub at: u64,
    /// See [`Envelope`].
    pub source: &'a Source,
    /// See [`Envelope`].
    pub seq: u64,
    /// See [`Envelope`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Uuid>,
    /// See [`Envelope`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<&'a ClientName>,
    /// See [`Envelope`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_ms: Option<u64>,
    /// See [`Envelope`].
    pub kind: &'a str,
    /// The body.
    pub body: &'a M,
}

impl<M: Serialize> Outgoing<'_, M> {
    /// The second frame.
    ///
    /// # Errors
    /// When the body cannot be written as MessagePack, which no body of this crate does.
    pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        let mut bytes = Vec::with_capacity(USUAL);
        rmp_serde::encode::write_named(&mut bytes, self)?;
        Ok(bytes)
    }
}

/// A fresh message id (UUIDv7).
pub fn fresh_id() -> Uuid {
    Uuid::now_v7()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An envelope whose body is an array in an array, so many deep.
    fn nested(depth: usize) -> Vec<u8> {
        let mut body = vec![0x91; depth];
        body.push(0xc0);
        let source = Source {
            component: "supervisor".to_owned(),
            instance: "77".to_owned(),
            incarnation: 1,
        };
        let envelope = rmp_serde::to_vec_named(&Outgoing {
            v: VERSION,
            id: Uuid::nil(),
            at: 0,
            source: &source,
            seq: 0,
            cause: None,
            reply_to: None,
            budget_ms: None,
            kind: "x",
            body: &(),
        })
        .unwrap();
        // The body is the last field, nil, and is replaced.
        let (rest, _) = envelope.split_at(envelope.len() - 1);
        [rest, &body].concat()
    }

    /// The fields of an envelope in this order, the body among them.
    fn written(order: &[&str], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x80 | u8::try_from(order.len()).unwrap()];
        for key in order {
            bytes.extend(rmp_serde::to_vec(key).unwrap());
            match *key {
                "v" => bytes.push(1),
                "id" => bytes.extend(rmp_serde::to_vec(&Uuid::nil()).unwrap()),
                "at" => bytes.push(7),
                "source" => bytes.extend(
                    rmp_serde::to_vec_named(&Source {
                        component: "body".to_owned(),
                        instance: "1".to_owned(),
                        incarnation: 1,
                    })
                    .unwrap(),
                ),
                "kind" => bytes.extend(rmp_serde::to_vec("body").unwrap()),
                "body" => bytes.extend(body),
                // Of a later version; a body in it is not the body.
                _ => bytes.extend(b"\x81\xa4body\x05"),
            }
        }
        bytes
    }

    #[test]
    fn the_body_is_found_wherever_it_stands_and_taken_over_as_it_is() {
        // Numbers longer than they need be, as other implementations write them.
        let body = b"\x81\xa1a\xcd\x00\x05";
        for order in [
            ["v", "id", "at", "source", "kind", "later", "body"],
            ["body", "later", "v", "id", "at", "source", "kind"],
            ["v", "id", "later", "at", "body", "source", "kind"],
        ] {
            let envelope = Envelope::decode(&written(&order, body)).unwrap();
            assert_eq!(envelope.body.bytes(), body);
            assert_eq!(envelope.kind, "body");
        }
        let without = written(&["v", "id", "at", "source", "kind"], body);
        assert!(Envelope::decode(&without).unwrap().body.is_nil());
        let twice = written(&["v", "id", "at", "source", "kind", "body", "body"], body);
        assert!(Envelope::decode(&twice).is_err());
        let half = written(&["v", "id", "at", "source", "kind", "body"], b"\x92\x01");
        assert!(matches!(
            Envelope::decode(&half),
            Err(EnvelopeError::Decode(_))
        ));
    }

    #[test]
    fn what_nests_too_deep_is_refused_before_it_takes_stack() {
        assert!(Envelope::decode(&nested(MAX_DEPTH / 2)).is_ok());
        // At the very edge as the decoder has it.
        for depth in MAX_DEPTH - 4..MAX_DEPTH + 2 {
            let bytes = nested(depth);
            let decoder = shallow::<Envelope>(&bytes).is_ok();
            assert_eq!(Envelope::decode(&bytes).is_ok(), decoder, "{depth}");
        }
        for depth in [MAX_DEPTH, 1_000, 1_000_000] {
            assert!(matches!(
                Envelope::decode(&nested(depth)),
                Err(EnvelopeError::Decode(_))
            ));
        }
    }
}
