//! Who listens where on this host, from /proc; see proc_pid_net(5) and unix(7).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A TCP socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// The user who made it.
    pub uid: u32,
    /// Its number, by which processes that have it are found.
    pub inode: u64,
}

/// All that listens.
#[derive(Debug, Default)]
pub struct Listeners {
    tcp: Vec<Listener>,
    /// Numbers of the Unix sockets that listen, by path. A path that was removed
    /// and bound again has several.
    unix: BTreeMap<PathBuf, Vec<u64>>,
}

impl Listeners {
    /// Reads what there is now.
    pub fn now() -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}"));
        let all = |name: &str| tcp(&read(name).unwrap_or_default());
        Self {
            tcp: [all("tcp"), all("tcp6")].concat(),
            unix: unix(&String::from_utf8_lossy(
                &std::fs::read("/proc/net/unix").unwrap_or_default(),
            )),
        }
    }

    /// Those that stand in the way of a TCP socket.
    pub fn on(&self, address: SocketAddr) -> Vec<Listener> {
        let overlaps = |other: &&Listener| {
            let (one, other) = (address, other.address);
            let same = one.ip() == other.ip();
            one.port() == other.port()
                && (same || one.ip().is_unspecified() || other.ip().is_unspecified())
        };
        self.tcp.iter().filter(overlaps).copied().collect()
    }

    /// The numbers of the sockets that listen at a path.
    pub fn at(&self, path: &Path) -> &[u64] {
        self.unix.get(path).map_or(&[], Vec::as_slice)
    }
}

/// The processes that have one of these sockets, as far as this user may see them.
pub fn holders(inodes: &BTreeSet<u64>) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let descriptors = std::fs::read_dir(process.path().join("fd"));
        let has_one = descriptors.into_iter().flatten().flatten().any(|entry| {
            std::fs::read_link(entry.path())
                .ok()
                .and_then(|target| socket_number(target.to_str()?))
                .is_some_and(|number| inodes.contains(&number))
        });
        if has_one {
            found.insert(pid);
        }
    }
    found
}

/// A process in the words of a person: `nginx (pid 12)`.
pub fn process(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match crate::human::printable(name.trim()) {
        name if name.is_empty() => format!("pid {pid}"),
        name => format!("{name} (pid {pid})"),
    }
}

/// The number in `socket:[4711]`.
fn socket_number(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The listening sockets in the text of /proc/net/tcp or tcp6.
fn tcp(text: &str) -> Vec<Listener> {
    const LISTEN: &str = "0A";
    let one = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, LISTEN, _, _, _, uid, _, inode, ..] = fields.as_slice() else {
            return None;
        };
        Some(Listener {
            address: address(local)?,
            uid: uid.parse().ok()?,
            inode: inode.parse().ok()?,
        })
    };
    text.lines().filter_map(one).collect()
}

/// `0100007F:1F90`: words in the host's order of bytes, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some(SocketAddr::new(ip, port))
}

/// The listening sockets in the text of /proc/net/unix.
fn unix(text: &str) -> BTreeMap<PathBuf, Vec<u64>> {
    /// `__SO_ACCEPTCON`: it listens.
    const LISTENS: u32 = 0x0001_0000;
    let mut all: BTreeMap<PathBuf, Vec<u64>> = BTreeMap::new();
    for line in text.lines() {
        // Number, references, protocol, flags, type, state, inode, path.
        let mut rest = line;
        let mut fields = [""; 7];
        for field in &mut fields {
            let (one, after) = rest.trim_start().split_once(' ').unwrap_or((rest, ""));
            *field = one;
            rest = after;
        }
        let flags = u32::from_str_radix(fields[3], 16).unwrap_or(0);
        if let (true, Ok(inode)) = (flags & LISTENS != 0, fields[6].parse()) {
            let path = rest.trim_start();
            all.entry(PathBuf::from(path)).or_default().push(inode);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_listens_is_found_with_its_process() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0");
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("with a space");
        let _unix = UnixListener::bind(&path).unwrap();
        let all = Listeners::now();
        let me = std::process::id();
        let held = |inodes: BTreeSet<u64>| holders(&inodes).contains(&me);
        let address = v4.local_addr().unwrap();
        let found = all.on(address);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].uid, rustix::process::geteuid().as_raw());
        assert!(held(found.iter().map(|one| one.inode).collect()));
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        assert_eq!(all.on(any), found, "an address that holds all others");
        // A host without IPv6 has none.
        if let Ok(v6) = v6 {
            assert_eq!(all.on(v6.local_addr().unwrap()).len(), 1);
        }
        assert!(held(all.at(&path).iter().copied().collect()));
        assert!(all.at(&temp.path().join("other")).is_empty());
        drop(v4);
        assert!(Listeners::now().on(address).is_empty());
    }
}
