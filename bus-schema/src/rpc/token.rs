//! Tokens: proof that a connection belongs to a certain spawn of an instance.
//!
//! A token is `<generation>.<64 hex digits>`, the digits an HMAC-SHA256
//! (RFC 2104) over service, instance and generation. Whoever can read the key
//! (mode 0600 in the state directory) can make tokens: the process-manager,
//! which hands one to each service, and the bridge, which checks them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::dirs::{Dirs, hex};
use crate::names::{Generation, InstanceName};

const KEY_BYTES: usize = 32;
/// Separates these tokens from anything else that the key may come to sign.
const DOMAIN: &[u8] = b"blackhole-rpc-token-v1";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// An operation on a file failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a key.
    #[error("{path} is not a key: remove it and restart, tokens handed out so far become void")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Others can read it.
    #[error("{path} has mode {mode:o}, others could forge tokens: it must be 600")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Why a token is refused. Deliberately short: it is for the log, not for the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The username is no instance.
    #[error("the username is not an instance")]
    Instance,
    /// Not `<generation>.<64 hex digits>`.
    #[error("the token is malformed")]
    Malformed,
    /// It was made for something else, or with another key.
    #[error("the token does not fit the instance")]
    Wrong,
}

/// Who a connection is, as its token proves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// The instance.
    pub instance: InstanceName,
    /// Which spawn of it.
    pub generation: Generation,
}

/// The key that tokens are made with.
#[derive(Clone)]
pub struct Key([u8; KEY_BYTES]);

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Key(…)")
    }
}

impl Key {
    /// A key from its bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads the key of a state directory, or makes it. Several processes may
    /// do so at once: one of them creates it, all get the same.
    ///
    /// # Errors
    /// When it can neither be read nor made, is damaged, or is readable by others.
    pub fn load_or_create(dirs: &Dirs) -> Result<Self, KeyError> {
        let path = dirs.rpc_key();
        match Self::load(&path) {
            Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                create(&path)?;
                Self::load(&path)
            }
            result => result,
        }
    }

    fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |operation| {
            move |source| KeyError::Io {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let file = File::open(path).map_err(io("open"))?;
        let mode = file.metadata().map_err(io("examine"))?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = String::new();
        let limit = 2 * KEY_BYTES as u64 + 2;
        file.take(limit)
            .read_to_string(&mut text)
            .map_err(io("read"))?;
        let damaged = || KeyError::Damaged {
            path: path.to_owned(),
        };
        let bytes = unhex(text.trim_end()).ok_or_else(damaged)?;
        bytes.try_into().map(Self).map_err(|_| damaged())
    }

    /// The token of one spawn of an instance.
    pub fn token(&self, instance: &InstanceName, generation: Generation) -> String {
        let digest = self.mac(instance, generation).finalize().into_bytes();
        format!("{generation}.{}", hex(&digest))
    }

    /// Checks a username and a token, in a time that does not depend on how
    /// much of the token is right.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn check(&self, username: &str, token: &str) -> Result<Credentials, TokenError> {
        let instance: InstanceName = username.parse().map_err(|_| TokenError::Instance)?;
        let (generation, digest) = token.split_once('.').ok_or(TokenError::Malformed)?;
        // Only the one spelling that `token` writes.
        let generation = match generation.parse::<u64>() {
            Ok(number) if number.to_string() == generation => Generation(number),
            _ => return Err(TokenError::Malformed),
        };
        let digest = unhex(digest).ok_or(TokenError::Malformed)?;
        self.mac(&instance, generation)
            .verify_slice(&digest)
            .map_err(|_| TokenError::Wrong)?;
        Ok(Credentials {
            instance,
            generation,
        })
    }

    fn mac(&self, instance: &InstanceName, generation: Generation) -> Hmac<Sha256> {
        // RFC 2104: a key shorter than the hash's block is padded with zeros.
        let mut block = [0; 64];
        for (padded, byte) in block.iter_mut().zip(self.0) {
            *padded = byte;
        }
        let mut mac = Hmac::<Sha256>::new(&block.into());
        // No name holds a NUL: two different triples never give the same bytes.
        for part in [
            DOMAIN,
            instance.service().as_str().as_bytes(),
            instance.to_string().as_bytes(),
            generation.to_string().as_bytes(),
        ] {
            mac.update(part);
            mac.update(&[0]);
        }
        mac
    }
}

/// The token of one spawn of an instance, see [`Key::token`].
pub fn token(key: &Key, instance: &InstanceName, generation: Generation) -> String {
    key.token(instance, generation)
}

/// What a spawned service finds in its environment. Set by the process-manager
/// over everything else.
pub fn environment(
    dirs: &Dirs,
    key: &Key,
    instance: &InstanceName,
    generation: Generation,
) -> [(&'static str, String); 4] {
    [
        ("BLACKHOLE_SERVICE", instance.service().to_string()),
        ("BLACKHOLE_INSTANCE", instance.to_string()),
        (
            "BLACKHOLE_RPC",
            format!("ipc://{}", dirs.rpc_socket().display()),
        ),
        ("BLACKHOLE_TOKEN", key.token(instance, generation)),
    ]
}

/// Writes a new key beside its place and links it there: a link fails where one
/// already is, so that a key is never replaced and never seen half-written.
fn create(path: &Path) -> Result<(), KeyError> {
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| KeyError::Io {
            operation,
            path,
            source,
        }
    };
    let mut bytes = [0; KEY_BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| io("get random bytes for", path)(error.into()))?;
    }
    let temporary = path.with_extension(format!("key.{}", uuid::Uuid::now_v7().simple()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("create", &temporary))?;
    let written = writeln!(file, "{}", hex(&bytes)).and_then(|()| file.sync_all());
    let linked = match written {
        Ok(()) => match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(io("create", path)(error))
            }
            _ => Ok(()),
        },
        Err(error) => Err(io("write", &temporary)(error)),
    };
    let _ = std::fs::remove_file(&temporary);
    linked
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2)
        || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key() -> Key {
        Key::from_bytes([7; KEY_BYTES])
    }

    fn instance(name: &str) -> InstanceName {
        name.parse().unwrap()
    }

    #[test]
    fn a_token_proves_exactly_one_spawn() {
        let token = key().token(&instance("web.1"), Generation(3));
        assert_eq!(
            key().check("web.1", &token),
            Ok(Credentials {
                instance: instance("web.1"),
                generation: Generation(3)
            })
        );
        assert_eq!(key().check("web.2", &token), Err(TokenError::Wrong));
        assert_eq!(key().check("db.1", &token), Err(TokenError::Wrong));
        assert_eq!(
            key().check("web.1", &token.replacen("3.", "4.", 1)),
            Err(TokenError::Wrong)
        );
        assert_eq!(
            Key::from_bytes([8; 32]).check("web.1", &token),
            Err(TokenError::Wrong)
        );
        assert_eq!(key().check("web", &token), Err(TokenError::Instance));
        for bad in [
            "",
            "3",
            "3.",
            "3.zz",
            "03.00",
            "-1.00",
            "+3.00",
            &token.to_uppercase(),
            &format!("0{token}"),
        ] {
            assert!(key().check("web.1", bad).is_err(), "{bad}");
        }
        // One flipped digit.
        let last = if token.ends_with('0') { "1" } else { "0" };
        let flipped = format!("{}{last}", &token[..token.len() - 1]);
        assert_eq!(key().check("web.1", &flipped), Err(TokenError::Wrong));
    }

    #[test]
    fn tokens_stay_what_they_are() {
        // Computed with Python's hmac module; a change here locks out running services.
        assert_eq!(
            key().token(&instance("web.1"), Generation(3)),
            "3.b58ff9b6dfff3ee7ed22b2a110ede49b4da381865bdd30986c81bc08ba319291"
        );
    }

    fn dirs(root: &Path) -> Dirs {
        let dirs = Dirs {
            run: root.join("r"),
            state: root.join("s"),
        };
        dirs.create().unwrap();
        dirs
    }

    #[test]
    fn all_who_create_at_once_get_the_same_key() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = dirs(temp.path());
        let keys: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| Key::load_or_create(&dirs).unwrap().0))
                .collect();
            makers
                .into_iter()
                .map(|maker| maker.join().unwrap())
                .collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_ne!(keys[0], [0; KEY_BYTES]);
        assert_eq!(
            std::fs::metadata(dirs.rpc_key()).unwrap().mode() & 0o7777,
            0o600
        );
        let left: Vec<_> = std::fs::read_dir(&dirs.state)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("rpc"))
            .collect();
        assert_eq!(left, ["rpc.key"]);
    }

    #[test]
    fn a_key_that_others_read_or_that_is_damaged_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = dirs(temp.path());
        Key::load_or_create(&dirs).unwrap();
        std::fs::set_permissions(dirs.rpc_key(), PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(
            Key::load_or_create(&dirs),
            Err(KeyError::Open { mode: 0o640, .. })
        ));
        std::fs::set_permissions(dirs.rpc_key(), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(dirs.rpc_key(), "abc\n").unwrap();
        assert!(matches!(
            Key::load_or_create(&dirs),
            Err(KeyError::Damaged { .. })
        ));
    }
}
