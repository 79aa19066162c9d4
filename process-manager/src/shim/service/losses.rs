//! What could not be written, of the log or of the record: counted, told, and tried again.

use std::io;
use std::time::{Duration, Instant};

use super::Service;
use crate::shim::prepare::note_record;
use crate::shim::protocol::{Loss, ShimMessage};

/// Losses are told at most this often.
const INTERVAL: Duration = Duration::from_millis(250);

/// Between two attempts to write a record that could not be written: the first, doubled up to the last.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

impl Service {
    /// The record was written, or was not: then it is tried again.
    pub(super) fn recorded(&mut self, written: io::Result<()>) {
        match written {
            Ok(()) => {
                self.loss.record_error = None;
                self.record_due = None;
            }
            Err(_) => {
                note_record(&mut self.loss, written);
                // What cannot be encoded waits for nothing.
                if self.held.record.is_behind() {
                    self.record_wait = AGAIN.0;
                    self.record_due = Instant::now().checked_add(self.record_wait);
                }
            }
        }
    }

    /// Tries a record again. That it still cannot be written is no news.
    fn record_again(&mut self) {
        match self.held.record.again() {
            Ok(()) => self.recorded(Ok(())),
            Err(error) => {
                self.loss.record_error = Some(error.to_string());
                self.record_wait = (self.record_wait * 2).min(AGAIN.1);
                self.record_due = Instant::now().checked_add(self.record_wait);
            }
        }
    }

    /// What was lost in the shim's life.
    pub(super) fn all_loss(&self) -> Loss {
        Loss {
            log_lines: self.output.lost(),
            log_error: self.output.error().cloned(),
            ..self.loss.clone()
        }
    }

    /// Has it told, where there is news.
    pub(super) fn note_loss(&mut self) {
        let news = self.output.lost() != self.loss_told.log_lines
            || self.loss.record_writes != self.loss_told.record_writes
            || self.loss.record_error.is_none() != self.loss_told.record_error.is_none();
        if news && self.loss_due.is_none() {
            self.loss_due = Instant::now().checked_add(INTERVAL);
        }
    }

    /// Does of this what is due.
    pub(super) fn losses_on_deadline(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.record_due) {
            self.record_again();
        }
        if is_due(self.loss_due) {
            self.loss_due = None;
            self.loss_told = self.all_loss();
            self.tell(&ShimMessage::Loss {
                loss: self.loss_told.clone(),
            });
        }
    }
}
