//! Fetching a whole snapshot.

use std::time::Duration;

use super::{Link, Stream};
use crate::message::Snapshot;
use crate::raw::Raw;

/// Budget of one page of a snapshot.
const PAGE_BUDGET: Duration = Duration::from_secs(10);

/// A whole snapshot: watermarks and items.
pub(super) type State = (Vec<(String, u64)>, Vec<Raw>);

/// All pages of a stream. The watermarks are those of the first page: what
/// changed while the later ones were read comes again as an event.
pub(super) async fn pages(link: &Link, stream: &Stream) -> Option<State> {
    let mut after = None;
    let mut first: Option<(u64, Vec<(String, u64)>)> = None;
    let mut items = Vec::new();
    loop {
        let body = (stream.page)(after).ok()?;
        let value = match link
            .request_raw(stream.kind, &body, PAGE_BUDGET, None)
            .await
        {
            Ok(value) => value,
            Err(error) => {
                tracing::info!(prefix = stream.prefix, %error, "no snapshot");
                // The owner answers and refuses: do not ask it without end at full speed.
                tokio::time::sleep(Duration::from_millis(200)).await;
                return None;
            }
        };
        let page: Snapshot<Raw> = match value.parse() {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(prefix = stream.prefix, %error, "a snapshot is not understood");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return None;
            }
        };
        match &first {
            None => first = Some((page.incarnation, page.watermarks)),
            Some((incarnation, _)) if *incarnation != page.incarnation => return None,
            Some(_) => {}
        }
        items.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    first.map(|(_, watermarks)| (watermarks, items))
}
