//! The bus over TCP on the loopback, beside the sockets in the run directory.
//!
//! Any user of the host can reach a loopback port, while only the operator can
//! reach the run directory: over TCP a client therefore proves by PLAIN that it
//! can read `<state>/bus.key`.

use std::sync::Weak;

use sha2::{Digest, Sha256};

use super::Inner;
use super::dispatch::first_time;
use crate::bus::BusError;
use crate::config::Listen;
use crate::dirs::{Dirs, hex};
use crate::secret::{self, SecretError};
use crate::transport::{PubSocket, SubSocket, TransportError};

/// PLAIN username of the bus over TCP.
pub const USERNAME: &str = "operator";

/// Why the bus is not there over TCP.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The password can neither be read nor made.
    #[error(transparent)]
    Password(#[from] SecretError),
    /// A socket could not be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// The password of the bus over TCP: reads `<state>/bus.key`, or makes it.
/// Several daemons may do so at once: all get the same.
///
/// # Errors
/// As [`secret::load_or_create`].
pub fn password(dirs: &Dirs) -> Result<String, SecretError> {
    secret::load_or_create(&dirs.bus_key()).map(|key| hex(&key))
}

/// Binds a component's addresses, where the configuration gives it some.
pub(super) async fn bind(
    inner: &Weak<Inner>,
    dirs: &Dirs,
    listen: &Listen,
) -> Result<Option<(PubSocket, SubSocket)>, BusError> {
    let Some(strong) = inner.upgrade() else {
        return Ok(None);
    };
    let addresses = (
        listen.events(&strong.component),
        listen.commands(&strong.component),
    );
    let (Some(events), Some(commands)) = addresses else {
        return Ok(None);
    };
    // Compared as digests: the time it takes tells nothing of the password.
    let expected = Sha256::digest(password(dirs).map_err(TcpError::from)?.as_bytes());
    let admit = |inner: Weak<Inner>| {
        move |username: &str, password: &str| {
            let admitted = username == USERNAME && Sha256::digest(password.as_bytes()) == expected;
            if !admitted && let Some(inner) = inner.upgrade() {
                inner.counters.refused.up();
                if first_time(&inner, "tcp") {
                    tracing::warn!(
                        "a client over TCP has not the password of the bus; reported once"
                    );
                }
            }
            admitted
        }
    };
    let evt = PubSocket::bind_tcp(events, admit(inner.clone()))
        .await
        .map_err(TcpError::from)?;
    let cmd = SubSocket::bind_tcp(commands, admit(inner.clone()))
        .await
        .map_err(TcpError::from)?;
    cmd.subscribe("").await.map_err(TcpError::from)?;
    tracing::info!(%events, %commands, "listening over TCP");
    Ok(Some((evt, cmd)))
}
