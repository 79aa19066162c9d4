//! Where a service may take direct calls: on this host and nowhere else.
//!
//! An endpoint is what a service says of itself, and others connect to it with
//! their rights: it names a socket in the directory made for that, or a port of
//! the loopback. Anybody may make entries in that directory: a link there leads anywhere,
//! and a subdirectory's owner moves what is in it, so neither is taken.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// What is allowed, for who wrote something else.
const ALLOWED: &str = "an endpoint is ipc:// with a socket in the directory for direct calls, \
                       or tcp:// with an address of the loopback and a port";

/// An endpoint that nobody is told of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint:?}: {ALLOWED}")]
pub struct EndpointError {
    /// The first 200 characters of what was said.
    pub endpoint: String,
}

/// A socket for direct calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectEndpoint {
    /// `ipc://` and an absolute path.
    Ipc(PathBuf),
    /// `tcp://` and an address of the loopback.
    Tcp(SocketAddr),
}

impl DirectEndpoint {
    /// Reads `ipc:///run/blackhole/rpc/d/1f` or `tcp://127.0.0.1:7400`: no names, since
    /// a name may stand for any host. With `below`, a path must be directly in one of
    /// these. What is at the path already, looked at without following a link (a
    /// system call that does not wait), must be a socket of one name.
    ///
    /// # Errors
    /// For anything else.
    pub fn parse(text: &str, below: Option<&[PathBuf]>) -> Result<Self, EndpointError> {
        let parsed = match text.split_once("://") {
            Some(("ipc", path)) => socket(Path::new(path), below).map(Self::Ipc),
            Some(("tcp", address)) => loopback(address).map(Self::Tcp),
            _ => None,
        };
        parsed.ok_or_else(|| EndpointError {
            endpoint: text.chars().take(200).collect(),
        })
    }
}

fn socket(path: &Path, below: Option<&[PathBuf]>) -> Option<PathBuf> {
    let mut parts = path.components();
    let plain = parts.next() == Some(Component::RootDir)
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && path.file_name().is_some()
        && !path.as_os_str().as_encoded_bytes().contains(&0);
    let inside = |directory: &PathBuf| path.parent() == Some(directory);
    let allowed = plain && below.is_none_or(|below| below.iter().any(inside));
    (allowed && is_socket_or_nothing(path)).then(|| path.to_owned())
}

/// A second name may be a hard link to somebody else's socket. What appears there later
/// in a directory of mode 1777 is for the kernel's `protected_symlinks` (proc(5)).
fn is_socket_or_nothing(path: &Path) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(data) => data.file_type().is_socket() && data.nlink() == 1,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn loopback(address: &str) -> Option<SocketAddr> {
    let address: SocketAddr = address.parse().ok()?;
    (address.ip().is_loopback() && address.port() != 0).then_some(address)
}

/// The directory of the sockets for direct calls, beside the bridge's own socket, as it
/// is written and as it is without symbolic links: services may know it by either.
pub fn direct_dirs(bridge_socket: &Path) -> Vec<PathBuf> {
    let written = super::direct_dir(bridge_socket);
    let real = std::fs::canonicalize(&written)
        .ok()
        .filter(|real| *real != written);
    std::iter::once(written).chain(real).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_an_endpoint() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        let temp = tempfile::tempdir().unwrap();
        let below = [temp.path().join("d")];
        std::fs::create_dir(&below[0]).unwrap();
        let at = |name: &str| below[0].join(name);
        let parse = |name: &str| {
            let text = format!("ipc://{}", at(name).display());
            DirectEndpoint::parse(&text, Some(&below)).is_ok()
        };
        let _own = UnixListener::bind(at("own")).unwrap();
        assert!(parse("own"));
        assert!(parse("none-yet"));
        let far = temp.path().join("docker.sock");
        let _far = UnixListener::bind(&far).unwrap();
        symlink(&far, at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        std::fs::hard_link(&far, at("name")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::fs::create_dir(at("sub")).unwrap();
        let _below = UnixListener::bind(at("sub/x")).unwrap();
        symlink(temp.path(), at("up")).unwrap();
        for bad in [
            "link",
            "dangling",
            "name",
            "file",
            "sub",
            "sub/x",
            "up/docker.sock",
        ] {
            assert!(!parse(bad), "{bad}");
        }
    }

    #[test]
    fn only_this_hosts_sockets_are_endpoints() {
        let below = [PathBuf::from("/run/blackhole/rpc/d")];
        let parse = |text: &str| DirectEndpoint::parse(text, Some(&below));
        let path = "/run/blackhole/rpc/d/1f";
        let ipc = parse(&format!("ipc://{path}"));
        assert_eq!(ipc, Ok(DirectEndpoint::Ipc(path.into())));
        for good in [
            "tcp://127.0.0.1:7400",
            "tcp://127.9.9.9:1",
            "tcp://[::1]:7400",
        ] {
            let address = good.strip_prefix("tcp://").unwrap().parse().unwrap();
            assert_eq!(parse(good), Ok(DirectEndpoint::Tcp(address)), "{good}");
        }
        for bad in [
            "",
            "1f",
            "ipc://",
            "ipc:///",
            "ipc://1f",
            "ipc://@abstract",
            "ipc:///run/docker.sock",
            "ipc:///run/blackhole/rpc/d",
            "ipc:///run/blackhole/rpc/d/",
            "ipc:///run/blackhole/rpc/dd/1f",
            "ipc:///run/blackhole/rpc/d/../rpc.sock",
            "ipc:///run/blackhole/rpc/d/sub/1f",
            "ipc:///run/blackhole/rpc/d/1f\0",
            "inproc://x",
            "tcp://127.evil.example:1",
            "tcp://localhost:1",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:99999",
            "tcp://127.0.0.1:1/path",
            "tcp://127.0.0.1:1;tcp://192.0.2.1:1",
            "tcp://0.0.0.0:1",
            "tcp://*:1",
            "tcp://192.0.2.1:1",
            "tcp://[::ffff:127.0.0.1]:1",
            "tcp://[2001:db8::1]:1",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.to_string().contains("loopback"), "{bad}");
        }
        // Who does not know the directory takes any path.
        let any = |text: &str| DirectEndpoint::parse(text, None);
        assert!(any("ipc:///elsewhere/1f").is_ok());
        assert!(any("ipc://elsewhere/1f").is_err());
        assert!(any("ipc:///elsewhere/../1f").is_err());
    }
}
