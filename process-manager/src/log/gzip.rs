//! Compressed files: gzip (RFC 1952) in members of a mebibyte of text each.
//!
//! Any gzip program reads such a file, and this one reads from its middle too:
//! each member's header tells, in a subfield of its own, how long the member is.
//! The first one also tells which file it was made of, so that a reader's place in
//! a file outlives the compression.
//!
//! Subfield `BH`, numbers little-endian: identity (8 bytes), bytes of the whole
//! text (8), bytes of this member's text (4), bytes of this member (4).

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};

/// Bytes of text in a member.
pub(crate) const MEMBER: usize = 1024 * 1024;

const SUBFIELD: [u8; 2] = *b"BH";
const SUBFIELD_DATA: usize = 24;
/// Of the fixed header, the length of the extra field, and the one subfield.
const HEADER: usize = 10 + 2 + 4 + SUBFIELD_DATA;

/// Compresses all of `source` to `target`. Stops early and returns false when
/// `wanted` (asked before each member) says so.
pub(crate) fn compress(
    source: &File,
    target: &mut File,
    identity: u64,
    wanted: impl Fn() -> bool,
) -> io::Result<bool> {
    let total = source.metadata()?.len();
    let mut text = vec![0; MEMBER];
    let mut at = 0;
    while at < total {
        if !wanted() {
            return Ok(false);
        }
        let length = MEMBER.min(usize::try_from(total - at).unwrap_or(MEMBER));
        source.read_exact_at(&mut text[..length], at)?;
        let mut extra = Vec::with_capacity(4 + SUBFIELD_DATA);
        extra.extend_from_slice(&SUBFIELD);
        extra.extend_from_slice(&(SUBFIELD_DATA as u16).to_le_bytes());
        extra.extend_from_slice(&identity.to_le_bytes());
        extra.extend_from_slice(&total.to_le_bytes());
        extra.extend_from_slice(&(length as u32).to_le_bytes());
        extra.extend_from_slice(&[0; 4]);
        let mut encoder = GzBuilder::new()
            .extra(extra)
            .write(Vec::with_capacity(MEMBER / 4), Compression::default());
        encoder.write_all(&text[..length])?;
        let mut member = encoder.finish()?;
        let bytes = (member.len() as u32).to_le_bytes();
        member[HEADER - 4..HEADER].copy_from_slice(&bytes);
        target.write_all(&member)?;
        at += length as u64;
    }
    Ok(true)
}

/// What a member's header tells.
#[derive(Debug, Clone, Copy)]
struct Header {
    identity: u64,
    total: u64,
    text: u32,
    bytes: u32,
}

impl Header {
    /// `None` where no member of ours begins.
    fn read(file: &File, at: u64) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        match file.read_exact_at(&mut header, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        // Magic, deflate, no flags but FEXTRA; one subfield, ours.
        let fixed = header.starts_with(&[0x1f, 0x8b, 8, 4])
            && header[10..12] == (4 + SUBFIELD_DATA as u16).to_le_bytes()
            && header[12..14] == SUBFIELD
            && header[14..16] == (SUBFIELD_DATA as u16).to_le_bytes();
        let long = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let short = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let header = Self {
            identity: long(16),
            total: long(24),
            text: short(32),
            bytes: short(36),
        };
        let sound = fixed
            && header.bytes as usize > HEADER
            && header.text > 0
            && header.text as usize <= MEMBER;
        Ok(sound.then_some(header))
    }
}

/// A place of a member: in the file and in the text.
#[derive(Debug, Clone, Copy)]
struct Member {
    at: u64,
    text_at: u64,
    header: Header,
}

/// A compressed file that is read from any place.
#[derive(Debug)]
pub(super) struct Compressed {
    file: File,
    first: Header,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Found so far, from the beginning on.
    members: Vec<Member>,
    /// The text of the member read last, and its index.
    text: Vec<u8>,
    of: Option<usize>,
}

impl Compressed {
    /// `None` for a file that this program has not made.
    pub(super) fn open(file: File) -> io::Result<Option<Self>> {
        let header = Header::read(&file, 0)?;
        Ok(header.map(|first| Self {
            file,
            first,
            state: RefCell::default(),
        }))
    }

    /// Identity of the file that it was made of.
    pub(super) fn identity(&self) -> u64 {
        self.first.identity
    }

    /// Bytes of the text.
    pub(super) fn size(&self) -> u64 {
        self.first.total
    }

    /// Where the text begins and ends that is lost when the one at `offset` cannot be read.
    pub(super) fn stretch(&self, offset: u64) -> (u64, u64) {
        let state = self.state.borrow();
        let end = |member: &Member| member.text_at + u64::from(member.header.text);
        let known = state
            .members
            .partition_point(|member| end(member) <= offset);
        match (state.members.get(known), state.members.last()) {
            (Some(member), _) => (member.text_at, end(member).min(self.first.total)),
            // From there on no member is found.
            (None, Some(last)) => (end(last), self.first.total),
            (None, None) => (0, self.first.total),
        }
    }

    /// Copies text from `offset` on and tells how much; 0 is the end.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        let Some(index) = self.find(&mut state, offset)? else {
            return Ok(0);
        };
        let member = state.members[index];
        if state.of != Some(index) {
            state.of = None;
            let mut bytes = vec![0; member.header.bytes as usize];
            self.file.read_exact_at(&mut bytes, member.at)?;
            state.text.clear();
            // One byte more than announced is enough to see that it is wrong.
            let limit = u64::from(member.header.text) + 1;
            GzDecoder::new(bytes.as_slice())
                .take(limit)
                .read_to_end(&mut state.text)?;
            if state.text.len() != member.header.text as usize {
                return Err(io::ErrorKind::InvalidData.into());
            }
            state.of = Some(index);
        }
        let from = usize::try_from(offset - member.text_at).unwrap_or(usize::MAX);
        let text = state.text.get(from..).unwrap_or_default();
        let length = text.len().min(buffer.len());
        buffer[..length].copy_from_slice(&text[..length]);
        Ok(length)
    }

    /// The member that holds a place in the text.
    fn find(&self, state: &mut State, offset: u64) -> io::Result<Option<usize>> {
        let end = |member: &Member| member.text_at + u64::from(member.header.text);
        loop {
            let known = state
                .members
                .partition_point(|member| end(member) <= offset);
            if known < state.members.len() {
                return Ok(Some(known));
            }
            let (at, text_at) = state.members.last().map_or((0, 0), |last| {
                (last.at + u64::from(last.header.bytes), end(last))
            });
            let Some(header) = Header::read(&self.file, at)? else {
                return Ok(None);
            };
            state.members.push(Member {
                at,
                text_at,
                header,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes / 8)
            .flat_map(|number| format!("{number:07}\n").into_bytes())
            .collect()
    }

    fn made(text: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("plain"), text).unwrap();
        let source = File::open(temp.path().join("plain")).unwrap();
        let path = temp.path().join("made");
        let mut target = File::create(&path).unwrap();
        assert!(compress(&source, &mut target, 77, || true).unwrap());
        (temp, path)
    }

    #[test]
    fn it_is_read_from_any_place_and_by_any_program() {
        let text = text(3 * MEMBER + 4096);
        let (_temp, path) = made(&text);
        let file = Compressed::open(File::open(&path).unwrap())
            .unwrap()
            .unwrap();
        assert_eq!((file.identity(), file.size()), (77, text.len() as u64));
        for at in [0, 1, MEMBER - 3, MEMBER, 3 * MEMBER + 17, 5, text.len() - 1] {
            let mut buffer = [0; 10];
            let read = file.read_at(&mut buffer, at as u64).unwrap();
            assert!(read > 0);
            assert_eq!(buffer[..read], text[at..at + read], "{at}");
        }
        assert_eq!(file.read_at(&mut [0; 9], text.len() as u64).unwrap(), 0);
        let foreign = std::process::Command::new("gzip")
            .arg("-dc")
            .arg("--")
            .stdin(File::open(&path).unwrap())
            .output();
        assert_eq!(foreign.unwrap().stdout, text);
    }

    #[test]
    fn what_is_broken_or_foreign_is_an_error_and_not_a_panic() {
        let (_temp, path) = made(&text(MEMBER + 4096));
        let good = std::fs::read(&path).unwrap();
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Compressed::open(File::open(&path).unwrap()).unwrap()
        };
        assert!(open(b"").is_none());
        assert!(open(b"\x1f\x8b\x08\x00 some other gzip, without a subfield of ours").is_none());
        let cut = open(&good[..good.len() / 2]).unwrap();
        assert!(cut.read_at(&mut [0; 8], 0).is_err() || cut.read_at(&mut [0; 8], 1 << 20).is_err());
        let mut flipped = good.clone();
        flipped[HEADER + 500] ^= 0xff;
        assert!(open(&flipped).unwrap().read_at(&mut [0; 8], 0).is_err());
    }

    #[test]
    fn nobody_waits_for_what_is_not_wanted_any_more() {
        let (temp, _) = made(&text(MEMBER * 2));
        let source = File::open(temp.path().join("plain")).unwrap();
        let mut target = File::create(temp.path().join("other")).unwrap();
        assert!(!compress(&source, &mut target, 1, || false).unwrap());
        assert_eq!(target.metadata().unwrap().len(), 0);
    }
}
