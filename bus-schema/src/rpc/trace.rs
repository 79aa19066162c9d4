//! Tracing context: which chain of calls a call belongs to, as W3C Trace Context
//! writes it (<https://www.w3.org/TR/trace-context/#traceparent-header>).
//!
//! A handler runs in the context of its request: calls that it makes, on the same
//! task, carry the same trace id and a span id of their own. [`TraceContext::scope`]
//! does the same for a task that a service starts by itself.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// One span of a trace: `00-<trace id>-<span id>-<flags>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The whole chain of calls; not zero.
    pub trace_id: u128,
    /// This step of it; not zero.
    pub span_id: u64,
    /// Bit 0: the caller records it.
    pub flags: u8,
}

/// The text is no `traceparent` of version 00.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct NoTrace;

impl TraceContext {
    /// The beginning of a new trace, recorded.
    pub fn new() -> Self {
        let (high, low) = (random(), random());
        Self {
            trace_id: u128::from(high) << 64 | u128::from(low),
            span_id: random(),
            flags: 1,
        }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self {
            span_id: random(),
            ..self
        }
    }

    /// The context that this task works in, if any.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|current| *current).ok()
    }

    /// Works in this context.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }
}

impl Default for TraceContext {
    fn default() -> Self {
        Self::new()
    }
}

/// Random enough to be told apart, and never zero. Not a secret.
fn random() -> u64 {
    RandomState::new()
        .hash_one(std::time::Instant::now())
        .max(1)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span, flags) = (self.trace_id, self.span_id, self.flags);
        write!(formatter, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

impl FromStr for TraceContext {
    type Err = NoTrace;

    fn from_str(text: &str) -> Result<Self, NoTrace> {
        let mut parts = text.split('-');
        let mut next = |length: usize| {
            let part = parts.next().filter(|part| part.len() == length);
            let hex = |part: &&str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let part = part.filter(hex).ok_or(NoTrace)?;
            u128::from_str_radix(part, 16).map_err(|_| NoTrace)
        };
        let (version, trace_id, span_id, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        if version != 0 || trace_id == 0 || span_id == 0 || parts.next().is_some() {
            return Err(NoTrace);
        }
        Ok(Self {
            trace_id,
            span_id: span_id as u64,
            flags: flags as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_w3c_writes_it() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context: TraceContext = text.parse().unwrap();
        assert_eq!(context.to_string(), text);
        let child = context.child();
        assert_eq!((child.trace_id, child.flags), (context.trace_id, 1));
        assert_ne!(child.span_id, context.span_id);
        for bad in [
            "",
            "00-0-0-0",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(NoTrace), "{bad}");
        }
        assert_ne!(TraceContext::new(), TraceContext::new());
    }
}
