//! Reading and following logs.

use serde::{Deserialize, Serialize};

use crate::names::InstanceName;

/// Lines of an instance's log, from its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLog {
    /// Which.
    pub instance: InstanceName,
    /// At most this many of the last lines, when `cursor` is not given.
    pub lines: u32,
    /// Go on from here: the last answer's `cursor`.
    #[serde(default)]
    pub cursor: Option<LogCursor>,
}

/// A place in an instance's log: file identity and offset in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCursor {
    /// Inode number of the file.
    pub inode: u64,
    /// Offset of the next byte.
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
