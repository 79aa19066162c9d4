//! Streamed answers: parts from the callee, credit from the caller.
//!
//! The callee never has more bytes out than the caller's window, nor more than
//! [`MAX_PARTS`] parts. The bridge counts what it has passed on and not seen
//! credited, which is never more than what the callee counts as out: whoever
//! keeps the rule is never taken for one who does not.

use std::collections::VecDeque;
use std::time::Instant;

use blackhole_bus_schema::rpc::header::{Header, MAX_PART_BYTES, MAX_PARTS};
use blackhole_bus_schema::rpc::{Code, Status};
use blackhole_bus_schema::transport::rpc::Frame;

use super::calls::CallId;
use super::{Conn, Core, What};

/// What is out of one streamed answer.
#[derive(Debug)]
pub(super) struct Stream {
    window: u32,
    /// Bytes passed on and not credited; at most the window.
    out: u32,
    /// The parts that they are in, oldest first; at most `MAX_PARTS`.
    parts: VecDeque<u32>,
    /// Credited bytes of the oldest part.
    credited: u32,
}

impl Stream {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            out: 0,
            parts: VecDeque::new(),
            credited: 0,
        }
    }

    /// Counts a part, unless it is one too many.
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        let window = self.window;
        let Some(part) = u32::try_from(bytes)
            .ok()
            .filter(|_| bytes <= MAX_PART_BYTES)
        else {
            return Err(format!(
                "streamed a part of {bytes} bytes, at most {MAX_PART_BYTES} are allowed"
            ));
        };
        if part > window - self.out {
            return Err(format!(
                "streamed beyond the caller's window of {window} bytes"
            ));
        }
        if self.parts.len() >= MAX_PARTS {
            return Err(format!(
                "streamed {MAX_PARTS} parts that were not acknowledged"
            ));
        }
        self.out += part;
        self.parts.push_back(part);
        Ok(())
    }

    /// Takes credit; how much of it there was to give.
    fn credit(&mut self, bytes: u32) -> u32 {
        let bytes = bytes.min(self.out);
        self.out -= bytes;
        self.credited += bytes;
        while let Some(part) = self.parts.front().copied()
            && part <= self.credited
        {
            self.credited -= part;
            self.parts.pop_front();
        }
        bytes
    }
}

impl Core {
    /// A part of an answer.
    pub(super) fn part(&mut self, now: Instant, conn: Conn, id: CallId, payload: Frame) {
        let Some(call) = self.calls.get_mut(id) else {
            return self.answers_nothing(conn, id);
        };
        if call.sent_to != Some(conn) {
            return self.offence(conn, "answered a call that it was not sent");
        }
        let (caller, caller_id) = (call.caller, call.caller_id);
        let (code, what) = match &mut call.stream {
            Some(stream) => match stream.take(payload.len()) {
                Ok(()) => {
                    let part = Header::Part { id: caller_id };
                    return self.send(caller, &part, payload, What::Part(id));
                }
                Err(what) => (Code::ResourceExhausted, what),
            },
            None => {
                let what = "streamed an answer to a call that has no room for one".to_owned();
                (Code::Internal, what)
            }
        };
        self.offence(conn, &what);
        self.end_stream(now, id, code, &what);
    }

    /// The caller has taken some of an answer.
    pub(super) fn credit(&mut self, conn: Conn, caller_id: u64, bytes: u32) {
        let made = self.connections.get(&conn).map(|c| &c.made);
        let Some(id) = made.and_then(|made| made.get(&caller_id).copied()) else {
            return; // The call is over.
        };
        let Some(call) = self.calls.get_mut(id) else {
            return;
        };
        let callee = call.sent_to;
        let bytes = call
            .stream
            .as_mut()
            .map_or(0, |stream| stream.credit(bytes));
        if let Some(callee) = callee.filter(|_| bytes > 0) {
            self.send(
                callee,
                &Header::Credit { id, bytes },
                Frame::new(),
                What::Credit(id),
            );
        }
    }

    /// Ends a streamed answer on both sides.
    pub(super) fn end_stream(&mut self, now: Instant, id: CallId, code: Code, why: &str) {
        let Some(call) = self.calls.get(id) else {
            return;
        };
        let message = format!("{} {why}", self.directory.name(call.service));
        if let Some(callee) = call.sent_to {
            self.send(callee, &Header::Cancel { id }, Frame::new(), What::Other);
        }
        self.calls.measure(now, id, code);
        self.finish(id, Err(Status::new(code, message)), Frame::new());
    }
}
