//! Answers by command id, kept for repetitions.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use uuid::Uuid;

/// Answers kept for commands that are repeated. The oldest is forgotten first.
const REPLY_CACHE: usize = 4096;
/// Bytes of answers kept; a page of a snapshot is some 256 KiB.
const REPLY_CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Answers by command id, the latest [`REPLY_CACHE`] of them and at most
/// [`REPLY_CACHE_BYTES`].
#[derive(Debug, Default)]
pub(super) struct ReplyCache {
    answers: HashMap<Uuid, Option<Bytes>>,
    order: VecDeque<Uuid>,
    bytes: usize,
}

pub(super) enum Known {
    New,
    InProgress,
    Answered(Bytes),
}

impl ReplyCache {
    pub(super) fn look_up(&self, id: Uuid) -> Known {
        match self.answers.get(&id) {
            None => Known::New,
            Some(None) => Known::InProgress,
            Some(Some(body)) => Known::Answered(body.clone()),
        }
    }

    pub(super) fn begin(&mut self, id: Uuid) {
        self.insert(id, None);
    }

    pub(super) fn finish(&mut self, id: Uuid, body: Bytes) {
        self.insert(id, Some(body));
    }

    pub(super) fn insert(&mut self, id: Uuid, body: Option<Bytes>) {
        let size = |body: &Option<Bytes>| body.as_ref().map_or(0, Bytes::len);
        self.bytes += size(&body);
        match self.answers.insert(id, body) {
            Some(before) => self.bytes -= size(&before),
            None => self.order.push_back(id),
        }
        while self.order.len() > REPLY_CACHE
            || (self.bytes > REPLY_CACHE_BYTES && self.order.len() > 1)
        {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.bytes -= self.answers.remove(&oldest).as_ref().map_or(0, size);
        }
    }
}
