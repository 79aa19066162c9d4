//! The traits that tie a `kind` to its body and a command to its reply.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::names::Generation;

/// A body that travels under one `kind`.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The `kind` field of its envelope: `<noun>.<verb>`.
    const KIND: &'static str;
}

/// A message that asks for something and is answered.
pub trait Command: Message {
    /// The result of a `done` reply.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// It only reads: carried out again it does no harm, so its answer, which
    /// may be large, is not kept for repetitions.
    const READS: bool = false;
}

/// One page of an owner's state, with the marks that tell which later events
/// are already in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot<T> {
    /// The owner's incarnation.
    pub incarnation: u64,
    /// For each topic of the stream that has had an event: the `seq` of the last
    /// event this page includes. Events at or below it are in the snapshot.
    pub watermarks: Vec<(String, u64)>,
    /// The items of this page, in the order of their names.
    pub items: Vec<T>,
    /// What to ask for to get the next page; `None` on the last.
    pub next: Option<String>,
}

/// Most items in one page of a [`Snapshot`]: some 1 KiB each keeps a page far
/// below the transport's largest message and the owner responsive between pages.
pub const PAGE_ITEMS: usize = 256;

/// An answer that carries nothing but a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generated {
    /// The generation in force now.
    pub generation: Generation,
}
