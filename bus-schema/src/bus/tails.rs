//! Sequence numbers of topics, and the sum that tells two tables of them apart.

use std::collections::HashMap;

/// The last `seq` of each topic of one publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tails {
    last: HashMap<String, u64>,
}

/// What a received `seq` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one.
    Next,
    /// Seen before, or part of a snapshot.
    Old,
    /// At least one before it is missing.
    Gap,
}

impl Tails {
    /// The next number of a topic; used by publishers. From 1.
    pub fn next(&mut self, topic: &str) -> u64 {
        match self.last.get_mut(topic) {
            Some(last) => {
                *last += 1;
                *last
            }
            None => {
                self.last.insert(topic.to_owned(), 1);
                1
            }
        }
    }

    /// Takes note of a received number; used by subscribers. After a gap the
    /// table is as before: a snapshot sets it right.
    pub fn arrived(&mut self, topic: &str, seq: u64) -> Arrival {
        let last = self.last.get(topic).copied().unwrap_or(0);
        if seq <= last {
            Arrival::Old
        } else if seq == last + 1 {
            self.last.insert(topic.to_owned(), seq);
            Arrival::Next
        } else {
            Arrival::Gap
        }
    }

    /// The last number of a topic, where there was one.
    pub fn last(&self, topic: &str) -> Option<u64> {
        self.last.get(topic).copied()
    }

    /// Sets a topic to a snapshot's watermark, never backwards.
    pub fn raise(&mut self, topic: &str, seq: u64) {
        let last = self.last.entry(topic.to_owned()).or_insert(0);
        *last = (*last).max(seq);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.last.clear();
    }

    /// The topics that begin with `prefix`, with their last numbers.
    pub fn with_prefix(&self, prefix: &str) -> Vec<(String, u64)> {
        self.last
            .iter()
            .filter(|(topic, _)| topic.starts_with(prefix))
            .map(|(topic, seq)| (topic.clone(), *seq))
            .collect()
    }

    /// Number of topics below `prefix` and the wrapping sum of
    /// FNV-1a-64(topic, then seq as 8 little-endian bytes) over them.
    pub fn sum(&self, prefix: &str) -> (u64, u64) {
        self.last
            .iter()
            .filter(|(topic, _)| topic.starts_with(prefix))
            .fold((0, 0), |(count, sum), (topic, seq)| {
                (
                    count + 1,
                    u64::wrapping_add(sum, fnv(topic.as_bytes(), &seq.to_le_bytes())),
                )
            })
    }
}

/// FNV-1a, 64 bits (RFC 9923), over two parts.
fn fnv(first: &[u8], second: &[u8]) -> u64 {
    first
        .iter()
        .chain(second)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_next_old_or_a_gap() {
        let mut tails = Tails::default();
        assert_eq!(tails.arrived("a.", 1), Arrival::Next);
        assert_eq!(tails.arrived("a.", 1), Arrival::Old);
        assert_eq!(tails.arrived("a.", 3), Arrival::Gap);
        assert_eq!(tails.arrived("a.", 2), Arrival::Next);
        tails.raise("a.", 7);
        tails.raise("a.", 5);
        assert_eq!(tails.arrived("a.", 7), Arrival::Old);
        assert_eq!(tails.arrived("a.", 8), Arrival::Next);
        assert_eq!(tails.arrived("b.", 2), Arrival::Gap);
    }

    #[test]
    fn equal_tables_have_equal_sums_in_any_order() {
        let (mut one, mut two) = (Tails::default(), Tails::default());
        for topic in ["p.a.", "p.b.", "q."] {
            one.next(topic);
        }
        for topic in ["q.", "p.b.", "p.a."] {
            two.next(topic);
        }
        assert_eq!(one.sum("p."), two.sum("p."));
        assert_eq!(one.sum("p.").0, 2);
        two.next("p.a.");
        assert_ne!(one.sum("p."), two.sum("p."));
        assert_eq!(one.sum("q."), two.sum("q."));
    }
}
