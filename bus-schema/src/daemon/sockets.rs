//! Notices that a daemon's sockets were removed, with the run directory perhaps.

#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The sockets and what they were when this was made.
pub(super) struct Sockets {
    own: Vec<(PathBuf, Option<(u64, u64)>)>,
    /// Without inotify(7) nobody is told.
    queue: Option<AsyncFd<OwnedFd>>,
}

impl Sockets {
    /// Begins to watch. Belongs to a runtime; blocks for a look at each.
    pub(super) fn watch(sockets: impl IntoIterator<Item = PathBuf>) -> Self {
        let own = sockets.into_iter().map(|path| {
            let own = identity(&path);
            (path, own)
        });
        let own: Vec<_> = own.collect();
        let queue = queue(own.iter().map(|(path, _)| path.as_path()));
        if let Err(error) = &queue {
            tracing::debug!(%error, "its sockets are not watched");
        }
        let queue = queue.ok();
        Self { own, queue }
    }

    /// Waits until one is gone or another one is in its place; returns which.
    pub(super) async fn removed(&self) -> PathBuf {
        loop {
            let lost = self.own.iter().find(|(path, own)| identity(path) != *own);
            if let Some((path, _)) = lost {
                return path.clone();
            }
            let Some(queue) = &self.queue else {
                return std::future::pending().await;
            };
            let Ok(mut ready) = queue.readable().await else {
                return std::future::pending().await;
            };
            while let Ok(1..) = rustix::io::read(queue.get_ref(), &mut [0_u8; 4096]) {}
            ready.clear_ready();
        }
    }
}

/// Tells of a link that is taken away (`IN_ATTRIB`: what is bound stays an inode,
/// without a name) and of a rename.
fn queue<'a>(sockets: impl Iterator<Item = &'a Path>) -> std::io::Result<AsyncFd<OwnedFd>> {
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let gone = WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    for socket in sockets {
        inotify::add_watch(&queue, socket, gone)?;
    }
    // SAFETY: the descriptor is owned by what is made of it here, and closed with it.
    Ok(unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) }?)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_removed_renamed_or_replaced_is_named() {
        type Change = fn(&Path);
        let changes: [Change; 4] = [
            |path| std::fs::remove_file(path).unwrap(),
            |path| std::fs::rename(path, path.with_extension("old")).unwrap(),
            |path| {
                let other = path.with_extension("new");
                std::fs::write(&other, "").unwrap();
                std::fs::rename(other, path).unwrap();
            },
            |path| std::fs::remove_dir_all(path.parent().unwrap()).unwrap(),
        ];
        for change in changes {
            let temp = tempfile::tempdir().unwrap();
            let folder = temp.path().join("run");
            std::fs::create_dir(&folder).unwrap();
            let paths = ["one", "two"].map(|name| folder.join(name));
            let _bound = paths
                .each_ref()
                .map(|path| std::os::unix::net::UnixListener::bind(path).unwrap());
            let sockets = Sockets::watch(paths.clone());
            let removed = sockets.removed();
            tokio::pin!(removed);
            // Other changes are none.
            std::fs::set_permissions(
                &paths[1],
                std::os::unix::fs::PermissionsExt::from_mode(0o600),
            )
            .unwrap();
            tokio::select! {
                biased;
                path = &mut removed => panic!("{} is there", path.display()),
                () = tokio::task::yield_now() => {}
            }
            change(&paths[1]);
            let gone = removed.await;
            // With their folder goes either first.
            assert!(gone == paths[1] || (gone == paths[0] && !folder.exists()));
        }
    }
}
