//! Answers by command id, kept for repetitions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::HEARTBEAT;
use super::dispatch::DEFAULT_BUDGET;

/// Answered commands that are known when they are repeated. The oldest is forgotten first.
const REPLY_CACHE: usize = 4096;
/// Bytes of answers kept. The answer to a spawn with limits has some 1,200: those of
/// a start of two thousand fit, and answers to mere questions are not kept.
const REPLY_CACHE_BYTES: usize = 3 * 1024 * 1024;

/// Heartbeats after the end of a command's budget for which its answer is still kept: its last
/// repetition may be on its way, or wait to be read.
const GRACE: u64 = 10;

/// Bytes of answers from which on it is worth while to give back the memory that they took.
const MANY: usize = 64 * 1024;

/// The latest [`REPLY_CACHE`] commands that were answered, and their answers as long as somebody
/// may ask for them: at most [`REPLY_CACHE_BYTES`], and until a while after the budget of the
/// command and of its last repetition. A command whose answer is not there any more is still
/// known: it is not carried out once more.
///
/// One that is still worked on is never forgotten, however many come after it. Of those there are
/// as many as the component holds at one time.
///
/// Time is counted in heartbeats of this process: while it is stopped repetitions wait to be read.
#[derive(Debug, Default)]
pub(super) struct ReplyCache {
    /// Until which heartbeat the answer is to be kept.
    in_progress: HashMap<Uuid, u64>,
    /// Those that were answered, and their order, oldest first.
    known: HashSet<Uuid>,
    order: VecDeque<Uuid>,
    /// The answers that are there, and the order of those.
    answers: HashMap<Uuid, Answer>,
    kept: VecDeque<Uuid>,
    bytes: usize,
    /// The most since memory was last given back.
    most: usize,
    /// Heartbeats so far.
    beats: u64,
    /// Before this one no answer goes.
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
    /// It was answered, and the answer is not kept any more.
    Forgotten,
}

impl ReplyCache {
    /// A command has come, for a client that may repeat it for `budget` from now on.
    pub(super) fn look_up(&mut self, id: Uuid, budget: Duration) -> Known {
        let later = self.until(budget);
        if let Some(until) = self.in_progress.get_mut(&id) {
            *until = later.max(*until);
            return Known::InProgress;
        }
        match self.answers.get_mut(&id) {
            Some(answer) => {
                answer.until = later.max(answer.until);
                Known::Answered(answer.body.clone())
            }
            None if self.known.contains(&id) => Known::Forgotten,
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
        // Whoever has waited for longer than it said may still ask.
        let until = until.max(self.until(Duration::ZERO));
        // Exactly as long as it is: what it was encoded in may be twice as large.
        let body = Bytes::copy_from_slice(&body);
        self.bytes += body.len();
        self.due = match self.answers.is_empty() {
            true => until,
            false => self.due.min(until),
        };
        match self.answers.insert(id, Answer { body, until }) {
            Some(before) => self.bytes -= before.body.len(),
            None => self.kept.push_back(id),
        }
        if self.known.insert(id) {
            self.order.push_back(id);
        }
        while self.bytes > REPLY_CACHE_BYTES && self.kept.len() > 1 {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.drop_answer(oldest);
        }
        while self.order.len() > REPLY_CACHE {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.known.remove(&oldest);
            if self.drop_answer(oldest) {
                self.kept.retain(|id| *id != oldest);
            }
        }
        self.most = self.most.max(self.bytes);
    }

    fn drop_answer(&mut self, id: Uuid) -> bool {
        let answer = self.answers.remove(&id);
        self.bytes -= answer.as_ref().map_or(0, |answer| answer.body.len());
        answer.is_some()
    }

    /// A heartbeat: lets go of the answers that nobody asks for any more. True when most of many
    /// bytes have gone.
    pub(super) fn beat(&mut self) -> bool {
        self.beats += 1;
        if self.answers.is_empty() || self.beats < self.due {
            return false;
        }
        let beats = self.beats;
        self.answers.retain(|_, answer| answer.until > beats);
        self.kept.retain(|id| self.answers.contains_key(id));
        self.bytes = self.answers.values().map(|answer| answer.body.len()).sum();
        let due = self.answers.values().map(|answer| answer.until).min();
        self.due = due.unwrap_or(u64::MAX);
        let gone = self.most >= MANY && self.bytes <= self.most / 4;
        if gone {
            self.most = self.bytes;
            self.answers.shrink_to_fit();
            self.kept.shrink_to_fit();
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn answered(cache: &mut ReplyCache, id: Uuid) -> bool {
        matches!(cache.look_up(id, Duration::ZERO), Known::Answered(_))
    }

    fn done(cache: &mut ReplyCache, budget: Duration, bytes: usize) -> Uuid {
        let id = Uuid::now_v7();
        cache.begin(id, budget);
        cache.finish(id, Bytes::from(vec![0; bytes]));
        id
    }

    #[test]
    fn what_is_worked_on_is_never_forgotten_and_answers_are_bounded() {
        let mut cache = ReplyCache::default();
        let slow = Uuid::now_v7();
        cache.begin(slow, SECOND);
        let ids: Vec<_> = (0..100)
            .map(|_| done(&mut cache, SECOND, 1 << 20))
            .collect();
        assert!(matches!(cache.look_up(slow, SECOND), Known::InProgress));
        assert!(cache.bytes <= REPLY_CACHE_BYTES);
        // It is not carried out again for want of its answer.
        assert!(matches!(cache.look_up(ids[0], SECOND), Known::Forgotten));
        assert!(answered(&mut cache, ids[99]));
        cache.finish(slow, Bytes::new());
        assert!(answered(&mut cache, slow));
        for _ in 0..REPLY_CACHE {
            done(&mut cache, SECOND, 1);
        }
        assert!(matches!(cache.look_up(ids[99], SECOND), Known::New));
        assert_eq!(cache.known.len(), REPLY_CACHE);
        assert_eq!(cache.order.len(), REPLY_CACHE);
        assert_eq!(cache.kept.len(), cache.answers.len());
        cache.begin(ids[0], SECOND);
        cache.forget(ids[0]);
        assert!(matches!(cache.look_up(ids[0], SECOND), Known::New));
        assert!(cache.in_progress.is_empty());
    }

    #[test]
    fn an_answer_is_kept_as_long_as_its_command_may_be_repeated() {
        let mut cache = ReplyCache::default();
        let short = done(&mut cache, Duration::from_millis(1500), MANY);
        let long = done(&mut cache, 60 * SECOND, MANY);
        for _ in 0..GRACE + 1 {
            assert!(!cache.beat());
            assert!(cache.answers.contains_key(&short));
        }
        // Half of them is not most.
        assert!(!cache.beat());
        assert!(matches!(cache.look_up(short, SECOND), Known::Forgotten));
        assert_eq!((cache.bytes, cache.kept.len()), (MANY, 1));
        let beats = (0..100).position(|_| cache.beat());
        assert_eq!(beats, Some(57));
        assert!(matches!(cache.look_up(long, SECOND), Known::Forgotten));
        assert_eq!((cache.bytes, cache.kept.len()), (0, 0));
        // For a few nothing is given back.
        done(&mut cache, SECOND, 1);
        assert!((0..100).all(|_| !cache.beat()));
        assert!(cache.answers.is_empty());
    }

    /// Memory is given back also while somebody goes on to ask now and then.
    #[test]
    fn most_of_many_is_enough() {
        let mut cache = ReplyCache::default();
        for _ in 0..10 {
            done(&mut cache, SECOND, MANY);
        }
        let beats = (0..100).position(|_| {
            done(&mut cache, SECOND, 1);
            cache.beat()
        });
        assert_eq!(beats, Some(10));
        assert!(cache.bytes > 0 && cache.bytes < MANY);
    }

    /// A client that repeats with the same budget each time, for as long as it takes.
    #[test]
    fn a_repetition_keeps_the_answer_for_its_own_budget() {
        let mut cache = ReplyCache::default();
        let id = Uuid::now_v7();
        cache.begin(id, SECOND);
        for _ in 0..100 {
            cache.beat();
            assert!(matches!(cache.look_up(id, 5 * SECOND), Known::InProgress));
        }
        cache.finish(id, Bytes::new());
        for _ in 0..5 + GRACE - 1 {
            cache.beat();
            assert!(cache.answers.contains_key(&id));
        }
        assert!(matches!(cache.look_up(id, 5 * SECOND), Known::Answered(_)));
        for _ in 0..5 + GRACE - 1 {
            cache.beat();
            assert!(cache.answers.contains_key(&id));
        }
        cache.beat();
        assert!(!cache.answers.contains_key(&id));
    }

    #[test]
    fn an_answer_that_took_longer_than_its_budget_is_kept_for_a_while() {
        let mut cache = ReplyCache::default();
        let id = Uuid::now_v7();
        cache.begin(id, SECOND);
        assert!((0..100).all(|_| !cache.beat()));
        cache.finish(id, Bytes::new());
        for _ in 0..GRACE - 1 {
            cache.beat();
            assert!(cache.answers.contains_key(&id));
        }
        cache.beat();
        assert!(matches!(cache.look_up(id, SECOND), Known::Forgotten));
    }
}
