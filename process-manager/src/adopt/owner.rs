//! Whose an instance is, where several process-managers share a state directory.

use std::io;
use std::path::Path;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;

/// The manager whose instances bear no name.
pub const UNNAMED: &str = "process-manager";

/// File that names the owner.
const OWNER: &str = "owner";

/// The process-manager that started the instance in `folder` last. Blocks.
pub fn owner(folder: &Path) -> String {
    std::fs::read_to_string(folder.join(OWNER))
        .map_or_else(|_| UNNAMED.to_owned(), |text| text.trim().to_owned())
}

/// Makes an instance that is about to be started `owner`'s. Blocks for one
/// unlink, or, for a named manager, one small write.
///
/// # Errors
/// When the file cannot be written or removed.
pub fn claim(dirs: &Dirs, name: &InstanceName, owner: &str) -> io::Result<()> {
    let folder = dirs.instance(name);
    let file = folder.join(OWNER);
    if owner != UNNAMED {
        std::fs::create_dir_all(&folder)?;
        return std::fs::write(file, format!("{owner}\n"));
    }
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_starts_it_owns_it() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            run: temp.path().join("r"),
            state: temp.path().join("s"),
        };
        let name: InstanceName = "web.1".parse().unwrap();
        let folder = dirs.instance(&name);
        claim(&dirs, &name, UNNAMED).unwrap();
        assert_eq!(owner(&folder), UNNAMED);
        claim(&dirs, &name, "process-manager.gpu").unwrap();
        assert_eq!(owner(&folder), "process-manager.gpu");
        claim(&dirs, &name, UNNAMED).unwrap();
        assert_eq!(owner(&folder), UNNAMED);
    }
}
