//! Checks of where services and daemons are to listen.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use blackhole_bus_schema::dirs::{Dirs, Lock};
use blackhole_bus_schema::names::{Component, InstanceName, ServiceName};
use blackhole_bus_schema::process::SocketSpec;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::subject::{At, Subject};
use super::{Check, fail, ok};
use crate::human;
use crate::listeners::{self, Listeners};

const WHAT: &str = "sockets";

/// Whether the addresses of `sockets` and `listen` are free, or already held by
/// those who are to have them.
pub(super) fn ports(dirs: &Dirs, subject: &Subject<'_>) -> Vec<Check> {
    let all = Listeners::now();
    let mut checks = Vec::new();
    let mut any = false;
    for (name, service) in &subject.document.config.services {
        for (socket, spec) in &service.settings.sockets {
            any = true;
            let at = subject.of_service(name.as_str(), &["sockets", socket]);
            let own = || shims(dirs, &all, name, service.replicas);
            checks.extend(socket_of(spec, &all, own).map(|(found, advice)| {
                fail(WHAT, format!("{}: {found}", spec.listen), advice).at(at)
            }));
        }
    }
    for (key, address) in subject.document.listen.entries() {
        any = true;
        let component: Option<Component> = match key {
            "rpc" => Some(Component::Bridge),
            key => key.parse().ok(),
        };
        let holder = component.and_then(|one| Lock::holder(&dirs.lock(&one.to_string())));
        let own: BTreeSet<u32> = holder.into_iter().collect();
        let ports = if key == "rpc" { 1 } else { 2 };
        for above in 0..ports {
            let mut address = address;
            address.set_port(address.port().saturating_add(above));
            let at = || subject.at(&["runtime", "orchestrator", "listen", key]);
            checks.extend(of_daemon(address, &all, &own, at));
        }
    }
    if checks.is_empty() && any {
        checks.push(ok(WHAT, "all addresses can be had"));
    }
    checks
}

fn of_daemon(
    address: SocketAddr,
    all: &Listeners,
    own: &BTreeSet<u32>,
    at: impl Fn() -> At,
) -> Option<Check> {
    let (found, advice) = tcp(address, all, || own.clone())?;
    Some(fail("listen", format!("{address}: {found}"), advice).at(at()))
}

/// The processes that may have a service's sockets: its shims, and those that
/// keep them between two of its lives.
fn shims(dirs: &Dirs, all: &Listeners, service: &ServiceName, replicas: u32) -> BTreeSet<u32> {
    let mut inodes = BTreeSet::new();
    let instances = (1..=replicas).filter_map(|n| InstanceName::new(service.clone(), n));
    for instance in instances {
        let socket = dirs.shim_socket(&instance);
        let mut keeper = socket.as_os_str().to_owned();
        keeper.push(".k");
        for path in [socket.as_path(), Path::new(&keeper)] {
            inodes.extend(all.at(path));
        }
    }
    listeners::holders(&inodes)
}

/// What is wrong with a socket of a service, and what to do about it.
fn socket_of(
    spec: &SocketSpec,
    all: &Listeners,
    own: impl Fn() -> BTreeSet<u32>,
) -> Option<(String, String)> {
    let path = Path::new(&spec.listen);
    if !path.is_absolute() {
        return tcp(spec.listen.parse().ok()?, all, own);
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => Some((
            "something stands there that is no socket, and is left alone".to_owned(),
            "remove it, or choose another path".to_owned(),
        )),
        // One that nobody listens on any more is replaced.
        Ok(_) if all.at(path).is_empty() => None,
        Ok(_) => busy(&all.at(path).iter().copied().collect(), &[], &own()),
        Err(_) if path.parent().is_some_and(Path::is_dir) => None,
        Err(_) => Some((
            "its directory does not exist".to_owned(),
            "create it, or choose another path".to_owned(),
        )),
    }
}

fn tcp(
    address: SocketAddr,
    all: &Listeners,
    own: impl Fn() -> BTreeSet<u32>,
) -> Option<(String, String)> {
    let listeners = all.on(address);
    let inodes: BTreeSet<u64> = listeners.iter().map(|one| one.inode).collect();
    let users: Vec<u32> = listeners.iter().map(|one| one.uid).collect();
    let error = try_bind(address).err()?;
    let text = |text: &str| text.to_owned();
    match error.kind() {
        io::ErrorKind::AddrInUse => busy(&inodes, &users, &own()),
        io::ErrorKind::AddrNotAvailable => Some((
            text("this host has no such address"),
            text("choose one that `ip address` shows"),
        )),
        io::ErrorKind::PermissionDenied => Some((
            text("this user may not listen there"),
            text(
                "run Blackhole as root, choose a port above, or lower net.ipv4.ip_unprivileged_port_start",
            ),
        )),
        _ => Some((error.to_string(), text("choose another address"))),
    }
}

/// Binds, and does not listen: nobody else's bind or listen fails by that.
fn try_bind(address: SocketAddr) -> io::Result<()> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(rustix::net::bind(&socket, &address)?)
}

/// Who has these sockets; nothing where that is who is to have them.
fn busy(inodes: &BTreeSet<u64>, users: &[u32], own: &BTreeSet<u32>) -> Option<(String, String)> {
    let holders = listeners::holders(inodes);
    if holders.iter().any(|pid| own.contains(pid)) {
        return None;
    }
    let names: Vec<String> = holders.iter().map(|pid| listeners::process(*pid)).collect();
    let by = match (names.is_empty(), users.first()) {
        (false, _) => human::list(&names, 4),
        (true, Some(user)) => format!("a process of user {user} that cannot be seen from here"),
        (true, None) => "a process that cannot be seen from here".to_owned(),
    };
    let advice = "end it, or choose another address".to_owned();
    Some((format!("busy: {by} listens there"), advice))
}
