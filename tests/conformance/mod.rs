//! What the conformance tests share.

// Each test program uses some of it.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::panic)]

pub mod listening;
pub mod python;

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::rpc::{ConnectOptions, Key};
use blackhole_tests::Deployment;

/// Ports of the loopback that no other test uses, in pairs, until this is dropped.
#[derive(Debug)]
pub struct PortPairs {
    pub first: Vec<u16>,
    /// Names in the abstract namespace, see unix(7): no crash leaves them behind.
    _locks: Vec<UnixListener>,
}

impl PortPairs {
    /// # Panics
    /// When there are none.
    #[track_caller]
    pub fn take(count: usize) -> Self {
        let mut pairs = Self {
            first: Vec::new(),
            _locks: Vec::new(),
        };
        // Below the range that connections are given, see ip_local_port_range in ip(7).
        for port in (20_000..27_000).step_by(2) {
            let name = format!("blackhole-tests-port-{port}");
            let name = SocketAddr::from_abstract_name(name).expect("a name of this length");
            let Ok(lock) = UnixListener::bind_addr(&name) else {
                continue;
            };
            let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            if is_free(port) && is_free(port + 1) {
                pairs.first.push(port);
                pairs._locks.push(lock);
            }
            if pairs.first.len() == count {
                return pairs;
            }
        }
        panic!("no free ports");
    }
}

/// As which instance to connect to a deployment's bridge, with its token.
pub fn options(deployment: &Deployment, instance: &str) -> ConnectOptions {
    let key = Key::load_or_create(&deployment.dirs()).expect("the key of the tokens");
    let instance: InstanceName = instance.parse().expect("an instance");
    ConnectOptions {
        socket: deployment.dirs().rpc_socket(),
        token: key.token(&instance, Generation(1)),
        instance,
    }
}
