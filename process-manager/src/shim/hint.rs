//! What a person can do about a program that did not start.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// As whom something was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

impl Who {
    /// As whom this process runs.
    pub fn own() -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: groups
                .into_iter()
                .map(rustix::process::Gid::as_raw)
                .collect(),
        }
    }

    pub(crate) fn may_execute(&self, meta: &fs::Metadata) -> bool {
        let mode = meta.mode();
        if self.uid == 0 {
            return meta.is_dir() || mode & 0o111 != 0;
        }
        let bit = if meta.uid() == self.uid {
            0o100
        } else if meta.gid() == self.gid || self.groups.contains(&meta.gid()) {
            0o010
        } else {
            0o001
        };
        mode & bit != 0
    }

    /// Whether it may pass through all directories on the way to `path`.
    pub(crate) fn may_reach(&self, path: &Path) -> bool {
        self.uid == 0 || self.stopped_at(path).is_none()
    }

    /// The first directory on the way to `path` that cannot be passed, by their modes.
    fn stopped_at(&self, path: &Path) -> Option<PathBuf> {
        let mut way: Vec<&Path> = path.ancestors().skip(1).collect();
        way.reverse();
        way.into_iter()
            .filter(|dir| !dir.as_os_str().is_empty())
            .find(|dir| fs::metadata(dir).is_ok_and(|meta| !self.may_execute(&meta)))
            .map(Path::to_owned)
    }
}

/// Why execve(2) of `program` failed with `errno`, as a sentence.
pub fn exec(program: &Path, errno: i32, who: &Who) -> String {
    let meta = fs::metadata(program);
    match errno {
        libc::ENOENT => match (meta, interpreter(program)) {
            (Err(_), _) if fs::symlink_metadata(program).is_ok() => {
                "a symbolic link that leads nowhere".into()
            }
            (Err(_), _) => "no such file: check the command's path".into(),
            (Ok(_), Some(Interpreter::Script(path))) if path.as_os_str().as_bytes().ends_with(b"\r") => {
                "the first line of the script ends with a carriage return: save it with Unix line ends".into()
            }
            (Ok(_), Some(Interpreter::Script(path))) => {
                format!("its interpreter {} does not exist: correct the script's first line or install it", path.display())
            }
            (Ok(_), Some(Interpreter::Elf)) => {
                "the file exists, but not the dynamic loader it asks for: it was built for another system or C library".into()
            }
            (Ok(_), None) => "the file exists, but something it needs does not".into(),
        },
        libc::EACCES | libc::EPERM => {
            if let Some(dir) = who.stopped_at(program) {
                return format!("user {} may not pass through the directory {}", who.uid, dir.display());
            }
            match meta {
                Ok(meta) if meta.is_dir() => "it is a directory".into(),
                Ok(meta) if !meta.is_file() => "it is not a regular file".into(),
                Ok(meta) if !who.may_execute(&meta) => {
                    format!("not executable for user {}: chmod +x {}", who.uid, program.display())
                }
                Ok(_) if mounted_noexec(program) => {
                    "it lies on a file system that is mounted noexec".into()
                }
                Ok(_) => match interpreter(program) {
                    Some(Interpreter::Script(path)) => {
                        format!("its interpreter {} may not be executed", path.display())
                    }
                    _ => "refused by the kernel (a security module, or a file system without exec)".into(),
                },
                Err(_) => format!("user {} may not see it", who.uid),
            }
        }
        libc::ENOEXEC => match meta {
            Ok(meta) if meta.len() == 0 => "the file is empty".into(),
            _ => match interpreter(program) {
                Some(Interpreter::Elf) => "built for another kind of processor".into(),
                _ => "neither a program for this machine nor a script: a script's first line must name its interpreter (#!/bin/sh)".into(),
            },
        },
        libc::ETXTBSY => "the file is open for writing: wait until its copying has ended".into(),
        libc::E2BIG => "arguments and environment together are too long".into(),
        libc::ENOTDIR => "a part of its path is not a directory".into(),
        libc::ELOOP => "too many symbolic links".into(),
        libc::ENOMEM => "not enough memory: raise memory_mb".into(),
        libc::EAGAIN => "the user has too many processes".into(),
        _ => String::new(),
    }
}

/// Why chdir(2) to `dir` failed with `errno`, as a sentence.
pub fn directory(dir: &Path, errno: i32, who: &Who) -> String {
    match errno {
        libc::ENOENT => {
            "the working directory does not exist: create it or change working_dir".into()
        }
        libc::ENOTDIR => "the working directory is not a directory".into(),
        libc::EACCES => {
            let at = who.stopped_at(dir).unwrap_or_else(|| dir.to_owned());
            format!(
                "user {} may not enter the directory {}",
                who.uid,
                at.display()
            )
        }
        _ => String::new(),
    }
}

/// Why open(2) of `file` for reading failed with `errno`, as a sentence.
pub fn input(file: &Path, errno: i32, who: &Who) -> String {
    match errno {
        libc::ENOENT => "no such file: create it or correct `stdin`".into(),
        libc::EACCES => match who.stopped_at(file) {
            Some(dir) => format!(
                "user {} may not pass through the directory {}",
                who.uid,
                dir.display()
            ),
            None => format!("user {} may not read it", who.uid),
        },
        libc::ENXIO => "a socket cannot be opened: give a file, a FIFO or a device".into(),
        _ => String::new(),
    }
}

enum Interpreter {
    Script(PathBuf),
    Elf,
}

fn interpreter(program: &Path) -> Option<Interpreter> {
    let mut head = Vec::new();
    // As much of the first line as Linux looks at.
    File::open(program)
        .ok()?
        .take(256)
        .read_to_end(&mut head)
        .ok()?;
    if head.starts_with(b"\x7fELF") {
        return Some(Interpreter::Elf);
    }
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = line.trim_ascii_start();
    let end = line
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t'))
        .unwrap_or(line.len());
    Some(Interpreter::Script(PathBuf::from(OsStr::from_bytes(
        &line[..end],
    ))))
}

fn mounted_noexec(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|info| info.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOBODY: Who = Who {
        uid: 65534,
        gid: 65534,
        groups: Vec::new(),
    };

    fn file(dir: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn each_failure_has_its_own_sentence() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let hint = |path: &Path, errno| exec(path, errno, &NOBODY);
        let missing = dir.join("missing");
        assert!(hint(&missing, libc::ENOENT).contains("no such file"));
        std::os::unix::fs::symlink("/nowhere/at/all", dir.join("link")).unwrap();
        assert!(hint(&dir.join("link"), libc::ENOENT).contains("link"));
        let script = file(dir, "script", b"#! /opt/no/python3 -u\n", 0o755);
        assert!(hint(&script, libc::ENOENT).contains("/opt/no/python3 does not exist"));
        let dos = file(dir, "dos", b"#!/bin/sh\r\necho\r\n", 0o755);
        assert!(hint(&dos, libc::ENOENT).contains("carriage return"));
        let elf = file(dir, "elf", b"\x7fELF\x02\x01", 0o755);
        assert!(hint(&elf, libc::ENOENT).contains("dynamic loader"));
        assert!(hint(&elf, libc::ENOEXEC).contains("processor"));
        let plain = file(dir, "plain", b"echo hello\n", 0o644);
        assert!(hint(&plain, libc::EACCES).contains("chmod +x"));
        assert!(hint(&plain, libc::ENOEXEC).contains("#!/bin/sh"));
        assert!(hint(&file(dir, "empty", b"", 0o755), libc::ENOEXEC).contains("empty"));
        assert!(hint(dir, libc::EACCES).contains("it is a directory"));
        let closed = dir.join("closed");
        fs::create_dir(&closed).unwrap();
        let inside = file(&closed, "program", b"", 0o755);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        if rustix::process::geteuid().is_root() {
            assert!(hint(&inside, libc::EACCES).contains("through the directory"));
            assert!(directory(&closed, libc::EACCES, &NOBODY).contains("closed"));
        }
        assert!(directory(&missing, libc::ENOENT, &NOBODY).contains("does not exist"));
    }
}
