//! Whether this user may look at a deployment at all. What may not be looked at would
//! else be taken for what is not there.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::dirs::Dirs;

use crate::error::Error;

/// A directory of somebody else's deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// What may not be read: the directory, or the first on the way to it that is closed.
    pub directory: PathBuf,
    /// Whose it is.
    pub owner: u32,
    name: Option<String>,
}

impl Foreign {
    /// `user root (0)`.
    pub fn user(&self) -> String {
        match &self.name {
            Some(name) => format!("user {name} ({})", self.owner),
            None => format!("user {}", self.owner),
        }
    }
}

/// The first directory of a deployment that this process may not read; `None` where it
/// may read all, and where there is none yet.
pub fn foreign(dirs: &Dirs) -> Option<Foreign> {
    let mut all = [
        (&dirs.state, ""),
        (&dirs.state, "lock"),
        (&dirs.state, "instances"),
        (&dirs.run, "bus"),
    ]
    .into_iter();
    let (denied, _) = all.find(|(dir, folder)| {
        let read = std::fs::read_dir(dir.join(folder));
        read.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    })?;
    // What lies below a closed directory cannot even be examined.
    let (directory, meta) = denied
        .ancestors()
        .find_map(|path| Some((path.to_owned(), std::fs::metadata(path).ok()?)))?;
    Some(Foreign {
        directory,
        owner: meta.uid(),
        name: name_of(meta.uid(), Path::new("/etc/passwd")),
    })
}

/// Refuses a command that would have to look at somebody else's deployment.
///
/// # Errors
/// When this process may not read one of its directories.
pub fn check(dirs: &Dirs) -> Result<(), Error> {
    match foreign(dirs) {
        None => Ok(()),
        Some(foreign) => Err(Error::Forbidden {
            message: format!(
                "permission denied: {} belongs to {}, and only they see what runs there",
                foreign.directory.display(),
                foreign.user()
            ),
            hint: "run this as that user, or name other directories with --run-dir and --state-dir"
                .to_owned(),
        }),
    }
}

/// A user's name, see passwd(5).
fn name_of(user: u32, passwd: &Path) -> Option<String> {
    let text = std::fs::read_to_string(passwd).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_their_names() {
        let temp = tempfile::tempdir().unwrap();
        let passwd = temp.path().join("passwd");
        std::fs::write(
            &passwd,
            "# x\n\nroot:x:0:0:root:/root:/bin/sh\na:b:7:8:::\n",
        )
        .unwrap();
        assert_eq!(name_of(0, &passwd).as_deref(), Some("root"));
        assert_eq!(name_of(7, &passwd).as_deref(), Some("a"));
        assert_eq!(name_of(8, &passwd), None);
    }

    #[test]
    fn what_is_not_there_belongs_to_nobody() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        assert_eq!(foreign(&dirs), None);
        dirs.create().unwrap();
        assert_eq!(foreign(&dirs), None);
    }
}
