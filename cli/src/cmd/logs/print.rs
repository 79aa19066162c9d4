//! Lines in the form asked for.

use std::io::IsTerminal;

use blackhole_bus_schema::names::InstanceName;
use tokio::time::Instant;

use super::gaps::Gaps;
use crate::args::Format;
use crate::context::Context;
use crate::error::Error;
use crate::human::Clock;
use crate::out;
use crate::view::log::{self, Entry};

/// Bytes that are printed at once.
const BATCH: usize = 64 * 1024;

/// Prints lines. What was taken is on standard output after [`flush`](Self::flush).
pub(crate) struct Printer {
    context: Context,
    raw: bool,
    terminal: bool,
    width: usize,
    clock: Clock,
    text: Vec<u8>,
    gaps: Gaps,
}

impl Printer {
    /// `raw` leaves nothing but the text.
    pub(crate) fn new<'a>(
        context: &Context,
        raw: bool,
        instances: impl Iterator<Item = &'a InstanceName>,
    ) -> Self {
        let width = instances
            .map(|name| name.to_string().len())
            .max()
            .unwrap_or(0);
        Self {
            context: context.clone(),
            raw,
            terminal: std::io::stdout().is_terminal(),
            width,
            clock: Clock::local(),
            text: Vec::new(),
            gaps: Gaps::default(),
        }
    }

    pub(crate) fn print(&mut self, entry: &Entry) -> Result<(), Error> {
        match self.context.format {
            Format::Table if self.raw => self.text.extend(log::raw(self.terminal, entry)),
            Format::Table => {
                self.width = self.width.max(entry.instance.to_string().len());
                self.text.extend(log::show(
                    self.context.style,
                    self.terminal,
                    self.width,
                    &self.clock,
                    entry,
                ));
            }
            Format::Json => {
                serde_json::to_writer(&mut self.text, &log::item(entry))
                    .map_err(|error| Error::Output(error.into()))?;
                self.text.push(b'\n');
            }
            Format::Yaml => {
                self.text.extend_from_slice(b"---\n");
                self.text
                    .extend_from_slice(out::yaml(&log::item(entry))?.as_bytes());
            }
        }
        match self.text.len() > BATCH {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Lines of an instance were rotated away so many times before they could be shown.
    pub(super) fn gaps(&mut self, instance: &InstanceName, times: usize) {
        if let Some(text) = self.gaps.met(Instant::now(), instance, times) {
            out::note(text);
        }
    }

    /// Says what has waited for its turn.
    pub(super) fn overdue(&mut self) {
        for text in self.gaps.due(Instant::now()) {
            out::note(text);
        }
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if self.text.is_empty() {
            return Ok(());
        }
        let printed = out::print(&self.text);
        self.text.clear();
        printed
    }
}
