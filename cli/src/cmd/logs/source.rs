//! Lines of one instance, a page at a time.

use std::collections::VecDeque;
use std::time::Duration;

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::{LogChunk, LogCursor, ReadLog};
use blackhole_process_manager::log as files;

use super::select::{Selection, Verdict};
use crate::client;
use crate::error::Error;
use crate::view::log::Entry;

/// Time for one page of a log.
pub(super) const PAGE: Duration = Duration::from_secs(5);

/// Lines looked at first for the last few that are meant; if those are too few,
/// eight times as many, and so on.
const FIRST_LOOK: u32 = 2_000;

/// Whom a log is asked of.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// The process-manager.
    Manager(Link),
    /// Nobody: the files are read.
    Files(Dirs),
}

impl Origin {
    async fn read(&self, request: &ReadLog) -> Result<LogChunk, Error> {
        let operation = || format!("read the log of {}", request.instance);
        match self {
            Self::Manager(link) => link
                .request(request, PAGE)
                .await
                .map_err(|error| client::request_error(&operation(), error, PAGE)),
            Self::Files(dirs) => {
                files::read(&dirs.instance(&request.instance), request).map_err(|error| {
                    Error::Bus {
                        operation: operation(),
                        source: Box::new(error),
                    }
                })
            }
        }
    }
}

/// How far an instance's log has been shown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) cursor: Option<LogCursor>,
}

/// Where reading begins.
#[derive(Debug, Clone, Copy)]
enum Begin {
    Mark,
    Tail(u32),
    Since(u64),
}

/// The lines of one instance that are meant, oldest first.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) instance: InstanceName,
    origin: Origin,
    selection: Selection,
    begin: Begin,
    max_bytes: u32,
    /// Where to go on after the lines that were taken off so far and those of their page.
    pub(crate) mark: Mark,
    /// Where the log ended when it was begun with: a log that grows as fast as it
    /// is read comes to an end too.
    end: Option<LogCursor>,
    page: VecDeque<Vec<u8>>,
    /// The last lines that are meant, once they were looked for.
    held: Option<VecDeque<Vec<u8>>>,
    seen: u64,
    /// Lines that were taken off.
    pub(super) taken: u64,
    /// How often lines were rotated away before they could be shown, and nobody was told.
    pub(super) gaps: usize,
    done: bool,
}

impl Source {
    /// What is meant of what was written after `mark`; of all where nothing was shown yet.
    pub(crate) fn after(
        origin: Origin,
        instance: InstanceName,
        selection: Selection,
        mark: Mark,
    ) -> Self {
        let begin = match mark.cursor {
            Some(_) => Begin::Mark,
            None => Begin::Since(selection.since.unwrap_or(0)),
        };
        Self {
            instance,
            origin,
            selection,
            begin,
            max_bytes: u32::MAX,
            mark,
            end: None,
            page: VecDeque::new(),
            held: None,
            seen: 0,
            taken: 0,
            gaps: 0,
            done: false,
        }
    }

    /// What is meant of what stands there. With a number of last lines they
    /// are looked for now, and held; else they come a page at a time.
    pub(crate) async fn open(
        origin: Origin,
        instance: InstanceName,
        selection: Selection,
        sources: usize,
    ) -> Result<Self, Error> {
        let mut source = Self::after(origin, instance, selection, Mark::default());
        // So that many logs side by side take no more memory than a few.
        let share = (64 << 20) / sources.max(1);
        source.max_bytes = u32::try_from(share).unwrap_or(u32::MAX);
        let tail = source.request(Begin::Tail(0));
        source.end = source.origin.read(&tail).await?.cursor;
        source.begin = Begin::Since(source.selection.since.unwrap_or(0));
        if let Some(last) = source.selection.last {
            source.find_last(last).await?;
        }
        Ok(source)
    }

    /// Holds the last lines that are meant.
    async fn find_last(&mut self, last: u32) -> Result<(), Error> {
        let wanted = usize::try_from(last).unwrap_or(usize::MAX);
        let mut look = match self.selection.is_plain() && !self.selection.previous {
            true => last,
            false => last.saturating_mul(4).max(FIRST_LOOK),
        };
        loop {
            if self.selection.since.is_none() {
                self.begin = Begin::Tail(look);
            }
            (self.mark, self.seen, self.done) = (Mark::default(), 0, false);
            self.page.clear();
            let mut held: VecDeque<Vec<u8>> = VecDeque::new();
            while let Some(raw) = self.next_raw().await? {
                held.push_back(raw);
                if held.len() > wanted {
                    held.pop_front();
                }
            }
            let whole = self.selection.since.is_some() || self.seen < u64::from(look);
            if held.len() >= wanted || whole || look == u32::MAX {
                self.held = Some(held);
                return Ok(());
            }
            look = look.saturating_mul(8);
        }
    }

    /// The next line. After the last one [`mark`](Self::mark) is where to go on.
    pub(crate) async fn next(&mut self) -> Result<Option<Entry>, Error> {
        let raw = match &mut self.held {
            Some(held) => held.pop_front(),
            None => self.next_raw().await?,
        };
        self.taken += u64::from(raw.is_some());
        Ok(raw.map(|raw| Entry {
            instance: self.instance.clone(),
            raw,
        }))
    }

    /// Whether what comes next needs no answer from anybody.
    pub(crate) fn is_ready(&self) -> bool {
        self.held.is_some() || self.done || !self.page.is_empty()
    }

    async fn next_raw(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            while let Some(raw) = self.page.pop_front() {
                match self.selection.judge(&raw) {
                    Verdict::Shown => return Ok(Some(raw)),
                    Verdict::Skipped => {}
                    Verdict::Past => {
                        self.page.clear();
                        self.done = true;
                    }
                }
            }
            if self.done {
                return Ok(None);
            }
            self.fetch().await?;
        }
    }

    async fn fetch(&mut self) -> Result<(), Error> {
        let begin = match self.mark.cursor {
            Some(_) => Begin::Mark,
            None => self.begin,
        };
        let chunk = self.origin.read(&self.request(begin)).await?;
        if chunk.gap {
            self.gaps += 1;
        }
        self.seen += chunk.lines.len() as u64;
        self.page = chunk.lines.into();
        self.mark.cursor = chunk.cursor.or(self.mark.cursor);
        let reached = matches!(
            (self.end, self.mark.cursor),
            (Some(end), Some(at)) if at.inode == end.inode && at.offset >= end.offset
        );
        self.done = !chunk.more || reached;
        Ok(())
    }

    fn request(&self, begin: Begin) -> ReadLog {
        let (lines, since) = match begin {
            Begin::Mark => (0, None),
            Begin::Tail(lines) => (lines, None),
            // The number is for a manager that does not know of times.
            Begin::Since(since) => (u32::MAX, Some(since)),
        };
        ReadLog {
            instance: self.instance.clone(),
            lines,
            cursor: self.mark.cursor.filter(|_| matches!(begin, Begin::Mark)),
            since,
            max_bytes: Some(self.max_bytes),
        }
    }
}
