//! The examples listen on fixed ports, so that their documentation can name
//! them. One test at a time on a host may run one, also of two checkouts whose
//! tests run at the same time.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use crate::wait::wait_at_most;

/// The ports of both examples.
const PORTS: [u16; 6] = [27100, 27101, 27102, 27103, 27200, 27201];

/// Below the limit of nextest for these tests, so that the message is seen.
const LIMIT: Duration = Duration::from_secs(300);

/// The right to use the ports, until it is dropped or this process ends.
#[derive(Debug)]
pub struct Ports {
    /// Its name in the abstract namespace is free again when nobody holds it,
    /// see unix(7): a lock that no crash can leave behind.
    _lock: UnixListener,
}

impl Ports {
    /// Waits until no other test holds the ports and nobody listens on them.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn hold() -> Self {
        let name = SocketAddr::from_abstract_name("blackhole-tests-example-ports")
            .expect("a name of this length");
        let lock = wait_at_most(LIMIT, "the other tests of the examples", &mut || {
            UnixListener::bind_addr(&name).map_err(|error| error.to_string())
        });
        wait_at_most(LIMIT, "the examples' ports to be free", &mut || {
            let taken = PORTS.iter().find_map(|port| {
                let error = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).err()?;
                Some(format!("{port}: {error} (does an example run already?)"))
            });
            taken.map_or(Ok(()), Err)
        });
        Self { _lock: lock }
    }
}
