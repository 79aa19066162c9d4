//! Answers by command id, kept for repetitions.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use uuid::Uuid;

/// Answers kept for commands that are repeated. The oldest is forgotten first.
const REPLY_CACHE: usize = 4096;
/// Bytes of answers kept. The answer to a spawn with limits has some 1,200: those of
/// a start of two thousand fit, and answers to mere questions are not kept.
const REPLY_CACHE_BYTES: usize = 3 * 1024 * 1024;

/// Answers by command id, the latest [`REPLY_CACHE`] of them and at most
/// [`REPLY_CACHE_BYTES`]. Only answers are ever forgotten: a command that is
/// still worked on must not be taken for a new one, however many come after it.
/// Of those there are as many as the component holds at one time.
#[derive(Debug, Default)]
pub(super) struct ReplyCache {
    in_progress: HashSet<Uuid>,
    answers: HashMap<Uuid, Bytes>,
    /// The ids in `answers`, oldest first.
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
            Some(body) => Known::Answered(body.clone()),
            None if self.in_progress.contains(&id) => Known::InProgress,
            None => Known::New,
        }
    }

    pub(super) fn begin(&mut self, id: Uuid) {
        self.in_progress.insert(id);
    }

    /// It was not taken on, or may be carried out again without harm.
    pub(super) fn forget(&mut self, id: Uuid) {
        self.in_progress.remove(&id);
    }

    pub(super) fn finish(&mut self, id: Uuid, body: Bytes) {
        self.in_progress.remove(&id);
        // Exactly as long as it is: what it was encoded in may be twice as large.
        let body = Bytes::copy_from_slice(&body);
        self.bytes += body.len();
        match self.answers.insert(id, body) {
            Some(before) => self.bytes -= before.len(),
            None => self.order.push_back(id),
        }
        while self.order.len() > REPLY_CACHE
            || (self.bytes > REPLY_CACHE_BYTES && self.order.len() > 1)
        {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.bytes -= self.answers.remove(&oldest).map_or(0, |body| body.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worked_on_is_never_forgotten_and_answers_are_bounded() {
        let mut cache = ReplyCache::default();
        let slow = Uuid::now_v7();
        cache.begin(slow);
        let mut ids = Vec::new();
        for _ in 0..100 {
            let id = Uuid::now_v7();
            cache.begin(id);
            cache.finish(id, Bytes::from(vec![0; 1024 * 1024]));
            ids.push(id);
        }
        assert!(matches!(cache.look_up(slow), Known::InProgress));
        assert!(cache.bytes <= REPLY_CACHE_BYTES);
        assert!(matches!(cache.look_up(ids[0]), Known::New));
        assert!(matches!(cache.look_up(ids[99]), Known::Answered(_)));
        cache.finish(slow, Bytes::new());
        assert!(matches!(cache.look_up(slow), Known::Answered(_)));
        cache.begin(ids[0]);
        cache.forget(ids[0]);
        assert!(matches!(cache.look_up(ids[0]), Known::New));
        assert!(cache.in_progress.is_empty());
    }
}
