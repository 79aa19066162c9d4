//! The headers of calls, read and written without serde: each call has four of
//! them in the bridge. What is not expected here, in kind, field or type, is left
//! to the general way, which also knows what is wrong with it.

use std::borrow::Cow;

use super::{Header, Request, Response};
use crate::reply::Code;

const CODES: [(Code, &str); 17] = [
    (Code::Ok, "ok"),
    (Code::Cancelled, "cancelled"),
    (Code::Unknown, "unknown"),
    (Code::InvalidArgument, "invalid_argument"),
    (Code::DeadlineExceeded, "deadline_exceeded"),
    (Code::NotFound, "not_found"),
    (Code::AlreadyExists, "already_exists"),
    (Code::PermissionDenied, "permission_denied"),
    (Code::ResourceExhausted, "resource_exhausted"),
    (Code::FailedPrecondition, "failed_precondition"),
    (Code::Aborted, "aborted"),
    (Code::OutOfRange, "out_of_range"),
    (Code::Unimplemented, "unimplemented"),
    (Code::Internal, "internal"),
    (Code::Unavailable, "unavailable"),
    (Code::DataLoss, "data_loss"),
    (Code::Unauthenticated, "unauthenticated"),
];

/// Reads MessagePack; `None` for whatever is not expected.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn big_endian(&mut self, length: usize) -> Option<u64> {
        let bytes = self.take(length)?;
        Some(bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    /// The number of a map's entries.
    fn map(&mut self) -> Option<usize> {
        match self.byte()? {
            byte @ 0x80..=0x8f => Some(usize::from(byte & 0x0f)),
            0xde => self.big_endian(2).map(|length| length as usize),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = match self.byte()? {
            byte @ 0xa0..=0xbf => u64::from(byte & 0x1f),
            0xd9 => self.big_endian(1)?,
            0xda => self.big_endian(2)?,
            _ => return None,
        };
        std::str::from_utf8(self.take(length as usize)?).ok()
    }

    fn number(&mut self) -> Option<u64> {
        match self.byte()? {
            byte @ 0x00..=0x7f => Some(u64::from(byte)),
            0xcc => self.big_endian(1),
            0xcd => self.big_endian(2),
            0xce => self.big_endian(4),
            0xcf => self.big_endian(8),
            _ => None,
        }
    }
}

/// Reads one of the headers of a call.
pub(super) fn decode(frame: &[u8]) -> Option<Header<'_>> {
    let mut reader = Reader { rest: frame };
    let (mut kind, mut id, mut code, mut bytes) = (None, None, None, None);
    let (mut method, mut message) = (None, "");
    let mut request = Request::default();
    for _ in 0..reader.map()? {
        match reader.text()? {
            "kind" => kind = Some(reader.text()?),
            "id" => id = Some(reader.number()?),
            "service" => request.service = reader.text()?.into(),
            "method" => method = Some(reader.text()?),
            "budget_ms" => request.budget_ms = Some(reader.number()?),
            "caller" => request.caller = Some(reader.text()?.into()),
            "trace" => request.trace = Some(reader.text()?.into()),
            "window" => request.window = Some(u32::try_from(reader.number()?).ok()?),
            "bytes" => bytes = Some(u32::try_from(reader.number()?).ok()?),
            "code" => {
                let text = reader.text()?;
                code = Some(CODES.iter().find(|(_, name)| *name == text)?.0);
            }
            "message" => message = reader.text()?,
            _ => return None,
        }
    }
    // Nothing may follow the map.
    if !reader.rest.is_empty() {
        return None;
    }
    Some(match kind? {
        "request" => Header::Request(Request {
            id: id?,
            method: method?.into(),
            ..request
        }),
        "response" => Header::Response(Response {
            id: id?,
            code: code?,
            message: message.into(),
            endpoints: Vec::new(),
        }),
        "part" => Header::Part { id: id? },
        "credit" => Header::Credit {
            id: id?,
            bytes: bytes?,
        },
        "cancel" => Header::Cancel { id: id? },
        _ => return None,
    })
}

/// Writes MessagePack in its shortest form.
struct Writer<'a> {
    frame: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn text(&mut self, text: &str) {
        let length = text.len();
        match length {
            0..=31 => self.frame.push(0xa0 | length as u8),
            32..=0xff => self.frame.extend_from_slice(&[0xd9, length as u8]),
            0x100..=0xffff => {
                self.frame.push(0xda);
                self.frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                self.frame.push(0xdb);
                self.frame.extend_from_slice(&(length as u32).to_be_bytes());
            }
        }
        self.frame.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        match number {
            0..=0x7f => self.frame.push(number as u8),
            0x80..=0xff => self.frame.extend_from_slice(&[0xcc, number as u8]),
            0x100..=0xffff => {
                self.frame.push(0xcd);
                self.frame.extend_from_slice(&(number as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.frame.push(0xce);
                self.frame.extend_from_slice(&(number as u32).to_be_bytes());
            }
            _ => {
                self.frame.push(0xcf);
                self.frame.extend_from_slice(&number.to_be_bytes());
            }
        }
    }

    fn begin(&mut self, fields: usize, kind: &str, id: u64) {
        // At most nine fields.
        self.frame.push(0x80 | fields as u8);
        self.text("kind");
        self.text(kind);
        self.text("id");
        self.number(id);
    }

    fn text_field(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name);
            self.text(value);
        }
    }

    fn number_field(&mut self, name: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.text(name);
            self.number(value);
        }
    }
}

/// Writes one of the headers of a call; whether it was one.
pub(super) fn encode(header: &Header<'_>, frame: &mut Vec<u8>) -> bool {
    let mut writer = Writer { frame };
    match header {
        Header::Request(request) => {
            writer.frame.reserve(96 + request.method.len());
            let service = (!request.service.is_empty()).then_some(request.service.as_ref());
            let fields = 3
                + usize::from(service.is_some())
                + usize::from(request.budget_ms.is_some())
                + usize::from(request.caller.is_some())
                + usize::from(request.trace.is_some())
                + usize::from(request.window.is_some());
            writer.begin(fields, "request", request.id);
            writer.text_field("service", service);
            writer.text_field("method", Some(&request.method));
            writer.number_field("budget_ms", request.budget_ms);
            writer.text_field("caller", request.caller.as_deref());
            writer.text_field("trace", request.trace.as_deref());
            writer.number_field("window", request.window.map(u64::from));
        }
        Header::Response(response) if response.endpoints.is_empty() => {
            writer.frame.reserve(48 + response.message.len());
            let code = CODES.iter().find(|(code, _)| *code == response.code);
            let message = (!response.message.is_empty()).then_some(response.message.as_ref());
            writer.begin(3 + usize::from(message.is_some()), "response", response.id);
            writer.text_field("code", code.map(|(_, name)| *name));
            writer.text_field("message", message);
        }
        Header::Part { id } => writer.begin(2, "part", *id),
        Header::Credit { id, bytes } => {
            writer.begin(3, "credit", *id);
            writer.number_field("bytes", Some(u64::from(*bytes)));
        }
        Header::Cancel { id } => writer.begin(2, "cancel", *id),
        _ => return false,
    }
    true
}

impl Header<'_> {
    /// The same, without a frame that it borrows from.
    pub fn into_owned(self) -> Header<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Self::Request(request) => Header::Request(Request {
                id: request.id,
                service: own(request.service),
                method: own(request.method),
                budget_ms: request.budget_ms,
                caller: request.caller.map(own),
                trace: request.trace.map(own),
                window: request.window,
            }),
            Self::Response(response) => Header::Response(Response {
                id: response.id,
                code: response.code,
                message: own(response.message),
                endpoints: response.endpoints,
            }),
            Self::Part { id } => Header::Part { id },
            Self::Credit { id, bytes } => Header::Credit { id, bytes },
            Self::Cancel { id } => Header::Cancel { id },
            Self::Resolve { id, service } => Header::Resolve {
                id,
                service: own(service),
            },
            Self::Goaway { reason, ends } => Header::Goaway {
                reason: own(reason),
                ends,
            },
            Self::Register(register) => Header::Register(register),
            Self::Registered(registered) => Header::Registered(registered),
            Self::Heartbeat { registered } => Header::Heartbeat { registered },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_named_as_serde_names_them() {
        for (code, name) in CODES {
            assert_eq!(serde_json::to_value(code).unwrap(), name);
        }
    }

    #[test]
    fn both_ways_agree() {
        let text = "x".repeat(300);
        let mut headers = vec![Header::Part { id: 7 }, Header::Cancel { id: 0 }];
        for number in [0, 127, 128, 255, 256, 65_535, 65_536, 1 << 32, u64::MAX] {
            headers.push(Header::Credit {
                id: number,
                bytes: u32::try_from(number).unwrap_or(u32::MAX),
            });
            headers.push(Header::Request(Request {
                id: number,
                service: text[..number.min(300) as usize].into(),
                method: text[..number.min(40) as usize].into(),
                budget_ms: Some(number),
                caller: Some("web.1".into()),
                trace: Some(text[..number.min(256) as usize].into()),
                window: Some(4),
            }));
        }
        for (code, _) in CODES {
            headers.push(Header::Response(Response {
                id: 3,
                code,
                message: text.as_str().into(),
                endpoints: Vec::new(),
            }));
        }
        for header in headers {
            let frame = header.encode();
            assert_eq!(frame, header.encode_any());
            assert_eq!(decode(&frame).unwrap(), header);
            assert_eq!(Header::decode_any(&frame).unwrap(), header);
            for end in 0..frame.len() {
                assert!(Header::decode(&frame[..end]).is_err());
            }
        }
    }
}
