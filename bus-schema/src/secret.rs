//! Secrets in the state directory: 32 random bytes in a file of one line, that only the
//! operator can read.
//!
//! Several daemons start at once and each may be the first: all get the same secret, and
//! nobody ever reads half of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::dirs::hex;
use crate::regular;

/// Bytes of a secret; in its file each is two hexadecimal digits.
pub const BYTES: usize = 32;

/// A secret.
pub type Secret = [u8; BYTES];

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// An operation on a file failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file holds no secret.
    #[error(
        "{path} is not a key of 64 hexadecimal digits (lower-case): remove it and restart, what was proved by it so far becomes void"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// It has nothing in it.
        empty: bool,
    },
    /// Others can read it.
    #[error("{path} has mode {mode:o}, others could act in the operator's name: it must be 600")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Reads the secret at `path`, or makes it. A file without a byte is what a loss of power may
/// leave of a secret that was not on disk yet; no process that knew it lives, so it is filled.
///
/// # Errors
/// When it can neither be read nor made, is damaged, or is readable by others.
pub fn load_or_create(path: &Path) -> Result<Secret, SecretError> {
    match load(path) {
        Err(SecretError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create(path)?;
        }
        // Somebody may have filled it since it was read: then it only has to be read again.
        Err(SecretError::Damaged { empty: true, .. }) => fill(path)?,
        other => return other,
    }
    load(path)
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> SecretError + 'a {
    move |source| SecretError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn load(path: &Path) -> Result<Secret, SecretError> {
    // It may be kept elsewhere.
    let file = regular::open_linked(path, OpenOptions::new().read(true));
    let file = file.map_err(failed("open", path))?;
    let mode = file.metadata().map_err(failed("examine", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Open {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Vec::new();
    file.take(2 * BYTES as u64 + 2)
        .read_to_end(&mut text)
        .map_err(failed("read", path))?;
    unhex(text.trim_ascii_end()).ok_or_else(|| SecretError::Damaged {
        path: path.to_owned(),
        empty: text.is_empty(),
    })
}

/// The bytes that 64 hexadecimal digits, lower-case as we write them, stand for.
pub(crate) fn unhex(text: &[u8]) -> Option<Secret> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() != BYTES {
        return None;
    }
    let mut secret = [0; BYTES];
    for (byte, [high, low]) in secret.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(secret)
}

/// Links a fresh secret to `path`, so that nobody ever reads half of one. Another process's
/// secret that is there first stays.
fn create(path: &Path) -> Result<(), SecretError> {
    let fresh = fresh(path)?;
    let made = match std::fs::hard_link(&fresh, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.and_then(|()| sync_directory(path)),
    };
    let _ = std::fs::remove_file(&fresh);
    made.map_err(failed("create", path))
}

/// Puts a fresh secret in place of an empty file.
fn fill(path: &Path) -> Result<(), SecretError> {
    let empty = regular::open_linked(path, OpenOptions::new().read(true));
    let empty = empty.map_err(failed("open", path))?;
    flock(&empty, FlockOperation::LockExclusive)
        .map_err(|error| failed("lock", path)(error.into()))?;
    // Who had the lock before may have done it.
    let now = std::fs::metadata(path).map_err(failed("examine", path))?;
    if now.len() > 0 {
        return Ok(());
    }
    let fresh = fresh(path)?;
    let made = std::fs::rename(&fresh, path).and_then(|()| sync_directory(path));
    if made.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    tracing::warn!(
        path = %path.display(),
        "an empty key was replaced: daemons that have run since before know another one"
    );
    made.map_err(failed("replace", path))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// A file with a fresh secret beside `path`, on disk.
fn fresh(path: &Path) -> Result<PathBuf, SecretError> {
    let mut secret = [0; BYTES];
    let mut filled = 0;
    while let Some(rest) = secret.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())
            .map_err(|error| failed("draw random bytes for", path)(error.into()))?;
    }
    // A name that no other process or thread has.
    let fresh = path.with_extension(format!("key.{}", crate::envelope::fresh_id().simple()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(failed("create", &fresh))?;
    let written = writeln!(file, "{}", hex(&secret)).and_then(|()| file.sync_all());
    if let Err(error) = written {
        let _ = std::fs::remove_file(&fresh);
        return Err(failed("write", &fresh)(error));
    }
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    use super::*;

    /// What several daemons get that start at once.
    fn got_at_once(path: &Path) -> BTreeSet<Secret> {
        let count = 16;
        let begin = Barrier::new(count);
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..count)
                .map(|_| {
                    scope.spawn(|| {
                        begin.wait();
                        load_or_create(path).unwrap()
                    })
                })
                .collect();
            makers
                .into_iter()
                .map(|maker| maker.join().unwrap())
                .collect()
        })
    }

    fn alone_in(folder: &Path) {
        let left: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing else is left behind: {left:?}");
    }

    #[test]
    fn all_who_create_at_once_get_the_same_and_only_the_operator_can_read_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("secret.key");
        let got = got_at_once(&path);
        assert_eq!(got.len(), 1, "all have the same");
        assert_ne!(got.first(), Some(&[0; BYTES]));
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(load_or_create(&path).unwrap(), *got.first().unwrap());
        alone_in(temp.path());
    }

    #[test]
    fn an_empty_file_is_filled_once() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("secret.key");
        for _ in 0..100 {
            let _ = std::fs::remove_file(&path);
            let mut empty = OpenOptions::new();
            empty.write(true).create_new(true).mode(0o600);
            empty.open(&path).unwrap();
            assert_eq!(got_at_once(&path).len(), 1, "all have the same");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        alone_in(temp.path());
    }

    #[test]
    fn what_others_can_read_what_is_damaged_and_what_is_no_file_is_refused_and_stays() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("secret.key");
        let secret = load_or_create(&path).unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        let open = load_or_create(&path);
        assert!(matches!(open, Err(SecretError::Open { mode: 0o640, .. })));
        mode(0o600);
        let digits = hex(&secret);
        for damaged in [
            "abc\n".to_owned(),
            digits.to_uppercase(),
            format!("{digits}0\n"),
            "\u{e9}".repeat(32),
        ] {
            std::fs::write(&path, &damaged).unwrap();
            let refused = load_or_create(&path);
            assert!(
                matches!(refused, Err(SecretError::Damaged { .. })),
                "{damaged}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
        std::fs::write(&path, &digits).unwrap();
        assert_eq!(load_or_create(&path).unwrap(), secret);
        let link = temp.path().join("link.key");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(load_or_create(&link).unwrap(), secret, "kept elsewhere");
        // Whoever waited for a writer of this would wait for ever.
        std::fs::remove_file(&path).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
        assert!(matches!(load_or_create(&path), Err(SecretError::Io { .. })));
    }
}
