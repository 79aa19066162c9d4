//! The lines of several instances by time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use blackhole_process_manager::log::Parsed;

use super::print::Printer;
use super::source::Source;
use crate::error::Error;
use crate::view::log::Entry;

/// When a line was written, as it bears it. Empty before the first time.
type Time = String;

/// Prints all that the sources have, the oldest line first. Lines of one
/// instance keep their order; one without a time stands with the line before it.
///
/// A source that fails is left where its last line was printed, and the others go on.
///
/// # Errors
/// When nothing can be printed; else the first failure of a source, at the end.
pub(crate) async fn print_merged(
    sources: &mut [Source],
    printer: &mut Printer,
) -> Result<(), Error> {
    let mut heads: Vec<Option<Entry>> = Vec::with_capacity(sources.len());
    let mut order: BinaryHeap<Reverse<(Time, usize)>> = BinaryHeap::new();
    let mut failed = Ok(());
    for (index, source) in sources.iter_mut().enumerate() {
        let head = source.next().await;
        printer.gaps(&source.instance, std::mem::take(&mut source.gaps));
        if let Ok(Some(head)) = &head {
            order.push(Reverse((time_of(head, Time::new()), index)));
        }
        heads.push(head.unwrap_or_else(|error| keep(&mut failed, error)));
    }
    while let Some(Reverse((time, index))) = order.pop() {
        let Some(entry) = heads[index].take() else {
            continue;
        };
        printer.print(&entry)?;
        let source = &mut sources[index];
        if !source.is_ready() {
            // Somebody is asked now, which may take a while.
            printer.flush()?;
        }
        let next = source.next().await;
        printer.gaps(&source.instance, std::mem::take(&mut source.gaps));
        match next {
            Ok(Some(head)) => {
                order.push(Reverse((time_of(&head, time), index)));
                heads[index] = Some(head);
            }
            Ok(None) => {}
            Err(error) => heads[index] = keep(&mut failed, error),
        }
    }
    printer.flush()?;
    failed
}

/// Keeps the first error.
fn keep(failed: &mut Result<(), Error>, error: Error) -> Option<Entry> {
    if failed.is_ok() {
        *failed = Err(error);
    }
    None
}

/// The time of a line, never before the one of the line before it.
fn time_of(entry: &Entry, before: Time) -> Time {
    match Parsed::time(&entry.raw) {
        Some(time) if time > before.as_str() => {
            let mut reused = before;
            reused.clear();
            reused.push_str(time);
            reused
        }
        _ => before,
    }
}
