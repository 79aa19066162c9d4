//! Tokens: proof that a connection belongs to a certain spawn of an instance.
//!
//! A token is `<generation>.<64 hex digits>`, the digits an HMAC-SHA256
//! (RFC 2104) over service, instance and generation. Whoever can read the key
//! (mode 0600 in the state directory) can make tokens: the process-manager,
//! which hands one to each service, and the bridge, which checks them.
//!
//! Tickets: proof to a service that a direct connection belongs to a certain
//! instance. The bridge makes them, one for each (callee's spawn, caller); the
//! callee checks them with its [`DirectKey`], without asking anybody.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::dirs::{Dirs, hex};
use crate::names::{Generation, InstanceName};
use crate::secret::{self, Secret, SecretError};

/// Separates these tokens from anything else that the key may come to sign.
const DOMAIN: &[u8] = b"blackhole-rpc-token-v1";

/// How long a ticket for direct calls is valid.
pub const TICKET_VALID: Duration = Duration::from_secs(3600);

/// Why a token or a ticket is refused. Deliberately short: it is for the log, not for the peer.
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
    /// A ticket whose time is over.
    #[error("the ticket has expired")]
    Expired,
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
pub struct Key(Secret);

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Key(…)")
    }
}

impl Key {
    /// A key from its bytes.
    pub fn from_bytes(bytes: Secret) -> Self {
        Self(bytes)
    }

    /// Reads the key of a state directory, or makes it. Several processes may
    /// do so at once: all get the same.
    ///
    /// # Errors
    /// As [`secret::load_or_create`].
    pub fn load_or_create(dirs: &Dirs) -> Result<Self, SecretError> {
        secret::load_or_create(&dirs.rpc_key()).map(Self)
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
        let digest = secret::unhex(digest.as_bytes()).ok_or(TokenError::Malformed)?;
        self.mac(&instance, generation)
            .verify_slice(&digest)
            .map_err(|_| TokenError::Wrong)?;
        Ok(Credentials {
            instance,
            generation,
        })
    }

    /// What one spawn of an instance checks the tickets of its direct callers
    /// with: HMAC-SHA256 over `direct`, NUL, instance, NUL, generation.
    pub fn direct_key(&self, instance: &InstanceName, generation: Generation) -> DirectKey {
        let mut mac = keyed(&self.0);
        mac.update(format!("direct\0{instance}\0{generation}").as_bytes());
        DirectKey(mac.finalize().into_bytes().into())
    }

    fn mac(&self, instance: &InstanceName, generation: Generation) -> Hmac<Sha256> {
        let mut mac = keyed(&self.0);
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

/// The key of the tickets of one callee, told to it when it is registered. A
/// ticket is `<expiry>.<64 hex digits>`: the expiry in Unix seconds, the digits
/// an HMAC-SHA256 with this key over the caller's instance, NUL, and the expiry.
#[derive(Clone, PartialEq, Eq)]
pub struct DirectKey(Secret);

impl std::fmt::Debug for DirectKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DirectKey(…)")
    }
}

impl DirectKey {
    /// Its 64 hexadecimal digits, as they travel.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// A key from what [`DirectKey::to_hex`] gives; `None` from anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        secret::unhex(text.as_bytes()).map(Self)
    }

    /// A ticket for a caller, valid for [`TICKET_VALID`].
    pub fn ticket(&self, caller: &InstanceName) -> String {
        self.ticket_until(caller, unix_now() + TICKET_VALID.as_secs())
    }

    /// A ticket for a caller that is valid until this time, in Unix seconds.
    pub fn ticket_until(&self, caller: &InstanceName, expiry: u64) -> String {
        let digest = self.mac(caller, expiry).finalize().into_bytes();
        format!("{expiry}.{}", hex(&digest))
    }

    /// Checks a username and a ticket, in a time that does not depend on how
    /// much of the ticket is right.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn check(&self, username: &str, ticket: &str) -> Result<InstanceName, TokenError> {
        let caller: InstanceName = username.parse().map_err(|_| TokenError::Instance)?;
        let (expiry, digest) = ticket.split_once('.').ok_or(TokenError::Malformed)?;
        let expiry = match expiry.parse::<u64>() {
            Ok(number) if number.to_string() == expiry => number,
            _ => return Err(TokenError::Malformed),
        };
        let digest = secret::unhex(digest.as_bytes()).ok_or(TokenError::Malformed)?;
        self.mac(&caller, expiry)
            .verify_slice(&digest)
            .map_err(|_| TokenError::Wrong)?;
        if expiry < unix_now() {
            return Err(TokenError::Expired);
        }
        Ok(caller)
    }

    fn mac(&self, caller: &InstanceName, expiry: u64) -> Hmac<Sha256> {
        let mut mac = keyed(&self.0);
        mac.update(format!("{caller}\0{expiry}").as_bytes());
        mac
    }
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

fn keyed(key: &Secret) -> Hmac<Sha256> {
    // RFC 2104: a key shorter than the hash's block is padded with zeros.
    let mut block = [0; 64];
    for (padded, byte) in block.iter_mut().zip(key) {
        *padded = *byte;
    }
    Hmac::<Sha256>::new(&block.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::from_bytes([7; secret::BYTES])
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

    #[test]
    fn a_ticket_lets_one_caller_to_one_spawn_for_its_time() {
        let callee = key().direct_key(&instance("db.1"), Generation(2));
        let ticket = callee.ticket(&instance("web.1"));
        assert_eq!(callee.check("web.1", &ticket), Ok(instance("web.1")));
        assert_eq!(callee.check("web.2", &ticket), Err(TokenError::Wrong));
        assert_eq!(callee.check("web", &ticket), Err(TokenError::Instance));
        for (other, generation) in [("db.1", 3), ("db.2", 2)] {
            let other = key().direct_key(&instance(other), Generation(generation));
            assert_eq!(other.check("web.1", &ticket), Err(TokenError::Wrong));
        }
        let old = callee.ticket_until(&instance("web.1"), unix_now() - 1);
        assert_eq!(callee.check("web.1", &old), Err(TokenError::Expired));
        let (_, digits) = ticket.split_once('.').unwrap();
        let later = format!("{}.{digits}", unix_now() + 999_999);
        assert_eq!(callee.check("web.1", &later), Err(TokenError::Wrong));
        // The token for the bridge opens nothing here.
        let token = key().token(&instance("web.1"), Generation(1));
        assert!(callee.check("web.1", &token).is_err());
        assert_eq!(DirectKey::from_hex(&callee.to_hex()), Some(callee));
        assert_eq!(DirectKey::from_hex("00"), None);
    }

    #[test]
    fn tickets_stay_what_they_are() {
        // Computed with Python's hmac module.
        let callee = key().direct_key(&instance("db.1"), Generation(2));
        assert_eq!(
            callee.to_hex(),
            "3d158a7cde732ad59f8d0141805fde45c129422f3a6efca4873be3d907e3210b"
        );
        assert_eq!(
            callee.ticket_until(&instance("web.1"), 1_700_000_000),
            "1700000000.42361a7065449811d25f53d9eea087c92f4cb015896a67adf6a938212ab69058"
        );
    }
}
