//! Answers by command id, kept for repetitions.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::HEARTBEAT;
use super::dispatch::DEFAULT_BUDGET;

/// Answers kept for commands that are repeated. The oldest is forgotten first.
const REPLY_CACHE: usize = 4096;
/// Bytes of answers kept. The answer to a spawn with limits has some 1,200: those of
/// a start of two thousand fit, and answers to mere questions are not kept.
const REPLY_CACHE_BYTES: usize = 3 * 1024 * 1024;

/// Heartbeats after the end of a command's budget for which its answer is still kept: its last
/// repetition may be on its way, or wait to be read.
const GRACE: u64 = 10;

/// Bytes of answers from which on it is worth while to give back the memory that they took.
const MANY: usize = 64 * 1024;

/// Answers by command id, the latest [`REPLY_CACHE`] of them and at most
/// [`REPLY_CACHE_BYTES`]. Only answers are ever forgotten: a command that is
/// still worked on must not be taken for a new one, however many come after it.
/// Of those there are as many as the component holds at one time.
///
/// An answer is forgotten when nobody repeats its command any more. That is counted in heartbeats
/// of this process, not in time: while it is stopped repetitions wait to be read.
#[derive(Debug, Default)]
pub(super) struct ReplyCache {
    /// Until which heartbeat the answer is to be kept.
    in_progress: HashMap<Uuid, u64>,
    answers: HashMap<Uuid, Answer>,
    /// The ids in `answers`, oldest first.
    order: VecDeque<Uuid>,
    bytes: usize,
    /// The most since there were none.
    most: usize,
    /// Heartbeats so far.
    beats: u64,
    /// Before this one no answer is to be forgotten.
    due: u64,
}

#[derive(Debug)]
struct Answer {
    body: Bytes,
    until: u64,
}

pub(super) enum Known {
    New,
    InProgress,
    Answered(Bytes),
}

impl ReplyCache {
    pub(super) fn look_up(&self, id: Uuid) -> Known {
        match self.answers.get(&id) {
            Some(answer) => Known::Answered(answer.body.clone()),
            None if self.in_progress.contains_key(&id) => Known::InProgress,
            None => Known::New,
        }
    }

    /// It is worked on, for a client that repeats it for `budget` at most.
    pub(super) fn begin(&mut self, id: Uuid, budget: Duration) {
        self.in_progress.insert(id, self.until(budget));
    }

    fn until(&self, budget: Duration) -> u64 {
        let beats = budget.as_millis().div_ceil(HEARTBEAT.as_millis());
        let beats = u64::try_from(beats).unwrap_or(u64::MAX);
        self.beats.saturating_add(beats).saturating_add(GRACE)
    }

    /// It was not taken on, or may be carried out again without harm.
    pub(super) fn forget(&mut self, id: Uuid) {
        self.in_progress.remove(&id);
    }

    pub(super) fn finish(&mut self, id: Uuid, body: Bytes) {
        let until = self.in_progress.remove(&id);
        let until = until.unwrap_or_else(|| self.until(DEFAULT_BUDGET));
        // Exactly as long as it is: what it was encoded in may be twice as large.
        let body = Bytes::copy_from_slice(&body);
        self.bytes += body.len();
        self.due = match self.answers.is_empty() {
            true => until,
            false => self.due.min(until),
        };
        match self.answers.insert(id, Answer { body, until }) {
            Some(before) => self.bytes -= before.body.len(),
            None => self.order.push_back(id),
        }
        while self.order.len() > REPLY_CACHE
            || (self.bytes > REPLY_CACHE_BYTES && self.order.len() > 1)
        {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            let before = self.answers.remove(&oldest);
            self.bytes -= before.map_or(0, |answer| answer.body.len());
        }
        self.most = self.most.max(self.bytes);
    }

    /// A heartbeat: forgets what nobody asks for any more. True when with that the last of many
    /// answers went.
    pub(super) fn beat(&mut self) -> bool {
        self.beats += 1;
        if self.answers.is_empty() || self.beats < self.due {
            return false;
        }
        let beats = self.beats;
        self.answers.retain(|_, answer| answer.until > beats);
        self.order.retain(|id| self.answers.contains_key(id));
        self.bytes = self.answers.values().map(|answer| answer.body.len()).sum();
        let due = self.answers.values().map(|answer| answer.until).min();
        self.due = due.unwrap_or(u64::MAX);
        if !self.answers.is_empty() {
            return false;
        }
        (self.answers, self.order) = (HashMap::new(), VecDeque::new());
        std::mem::take(&mut self.most) >= MANY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worked_on_is_never_forgotten_and_answers_are_bounded() {
        let mut cache = ReplyCache::default();
        let slow = Uuid::now_v7();
        cache.begin(slow, DEFAULT_BUDGET);
        let mut ids = Vec::new();
        for _ in 0..100 {
            let id = Uuid::now_v7();
            cache.begin(id, DEFAULT_BUDGET);
            cache.finish(id, Bytes::from(vec![0; 1024 * 1024]));
            ids.push(id);
        }
        assert!(matches!(cache.look_up(slow), Known::InProgress));
        assert!(cache.bytes <= REPLY_CACHE_BYTES);
        assert!(matches!(cache.look_up(ids[0]), Known::New));
        assert!(matches!(cache.look_up(ids[99]), Known::Answered(_)));
        cache.finish(slow, Bytes::new());
        assert!(matches!(cache.look_up(slow), Known::Answered(_)));
        cache.begin(ids[0], DEFAULT_BUDGET);
        cache.forget(ids[0]);
        assert!(matches!(cache.look_up(ids[0]), Known::New));
        assert!(cache.in_progress.is_empty());
    }

    #[test]
    fn an_answer_is_kept_as_long_as_its_command_may_be_repeated() {
        let mut cache = ReplyCache::default();
        let (short, long) = (Uuid::now_v7(), Uuid::now_v7());
        cache.begin(short, Duration::from_millis(1500));
        cache.begin(long, Duration::from_secs(60));
        let answered = |cache: &ReplyCache, id| matches!(cache.look_up(id), Known::Answered(_));
        // Its time counts from the beginning, not from the answer.
        assert!(!cache.beat());
        cache.finish(short, Bytes::from(vec![0; MANY]));
        cache.finish(long, Bytes::from(vec![0; MANY]));
        for _ in 0..GRACE {
            assert!(!cache.beat());
            assert!(answered(&cache, short));
        }
        assert!(!cache.beat());
        assert!(!answered(&cache, short) && answered(&cache, long));
        assert_eq!((cache.bytes, cache.order.len()), (MANY, 1));
        let beats = (0..100).position(|_| cache.beat());
        assert_eq!(beats, Some(57));
        assert!(!answered(&cache, long));
        assert_eq!((cache.bytes, cache.order.len()), (0, 0));
        // Of a few nothing is given back.
        cache.finish(Uuid::now_v7(), Bytes::new());
        assert!((0..100).all(|_| !cache.beat()));
        assert!(cache.answers.is_empty());
    }

    #[test]
    fn an_answer_that_takes_longer_than_its_budget_is_told_once_more() {
        let mut cache = ReplyCache::default();
        let id = Uuid::now_v7();
        cache.begin(id, Duration::from_secs(1));
        assert!((0..100).all(|_| !cache.beat()));
        assert!(matches!(cache.look_up(id), Known::InProgress));
        cache.finish(id, Bytes::new());
        assert!(matches!(cache.look_up(id), Known::Answered(_)));
        cache.beat();
        assert!(matches!(cache.look_up(id), Known::New));
    }
}
