//! Reading and following logs.

use serde::{Deserialize, Serialize};

use crate::names::InstanceName;

/// Lines of an instance's log, from its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLog {
    /// Which.
    pub instance: InstanceName,
    /// At most this many of the last lines, when neither `cursor` nor `since` is given.
    pub lines: u32,
    /// Go on from here: the last answer's `cursor`.
    #[serde(default)]
    pub cursor: Option<LogCursor>,
    /// Without a cursor: begin with the first line that is not older, Unix time
    /// in nanoseconds; 0 is the beginning.
    #[serde(default)]
    pub since: Option<u64>,
    /// Most bytes of lines in the answer, within what the manager is ready to
    /// send (128 to 256 KiB); for clients that read many logs side by side.
    #[serde(default)]
    pub max_bytes: Option<u32>,
}

/// A place in an instance's log. It stays good when the file is rotated and
/// when it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCursor {
    /// Identity of the file: of its inode and its birth. Opaque to clients.
    pub inode: u64,
    /// Offset of the next byte, of the text as it was before compression.
    pub offset: u64,
}

/// Answer to [`ReadLog`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Whole lines as they stand in the file, without the newline.
    #[serde(with = "bytes_list")]
    pub lines: Vec<Vec<u8>>,
    /// Where to go on.
    pub cursor: Option<LogCursor>,
    /// Whether more lines stand there already.
    pub more: bool,
    /// Lines or files between the cursor asked for and the first line are gone (rotated away).
    pub gap: bool,
}

/// Have an instance's new log lines published on `log.<instance>.` (the
/// manager's log socket) until the lease ends. Repeat to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowLog {
    /// Which.
    pub instance: InstanceName,
    /// Where to begin; `None` is the end.
    #[serde(default)]
    pub cursor: Option<LogCursor>,
    /// Lease in milliseconds.
    pub lease_ms: u64,
}

/// A batch of log lines on `log.<instance>.`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLines {
    /// Whose.
    pub instance: InstanceName,
    /// Lines, as in [`LogChunk`].
    #[serde(with = "bytes_list")]
    pub lines: Vec<Vec<u8>>,
    /// Lines skipped since the last batch because the reader was too slow.
    pub dropped: u64,
    /// Where the batch ends.
    pub cursor: LogCursor,
}

/// A list of byte strings as MessagePack `bin` values.
mod bytes_list {
    use serde::{Deserialize, Deserializer, Serializer, ser::SerializeSeq};
    use serde_bytes::{ByteBuf, Bytes};

    pub(super) fn serialize<S: Serializer>(
        list: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(list.len()))?;
        for item in list {
            sequence.serialize_element(Bytes::new(item))?;
        }
        sequence.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<ByteBuf>::deserialize(deserializer)?;
        Ok(list.into_iter().map(ByteBuf::into_vec).collect())
    }
}
