//! The daemons' programs: they stand beside this one.

use std::path::{Path, PathBuf};

use blackhole_bus_schema::names::Component;

use crate::error::Error;

/// Where the daemons' programs are.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds them beside the running program; all must be there.
    ///
    /// # Errors
    /// When one is missing.
    pub(super) fn find() -> Result<Self, Error> {
        let own = std::env::current_exe()
            .map_err(|source| Error::io("find", "the running program", source))?;
        let directory = own.parent().unwrap_or(Path::new("/")).to_owned();
        Self::in_directory(directory)
    }

    fn in_directory(directory: PathBuf) -> Result<Self, Error> {
        let found = Self { directory };
        let missing: Vec<String> = Component::ALL
            .iter()
            .map(Self::name)
            .chain(["blackhole-shim".to_owned()])
            .filter(|name| !found.directory.join(name).is_file())
            .collect();
        if missing.is_empty() {
            return Ok(found);
        }
        Err(Error::Failed {
            message: format!(
                "not found in {}: {}",
                found.directory.display(),
                missing.join(", ")
            ),
            hint: "build all of them with `cargo build --workspace --bins` (or `--release`), \
                   and install them beside `blackhole`"
                .to_owned(),
        })
    }

    /// The program of a component.
    pub(super) fn of(&self, component: &Component) -> PathBuf {
        self.directory.join(Self::name(component))
    }

    fn name(component: &Component) -> String {
        format!("blackhole-{}", crate::view::component::kind(component))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_a_way_out() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("blackhole-bridge"), "").unwrap();
        let error = Binaries::in_directory(temp.path().to_owned()).unwrap_err();
        let text = error.report();
        assert!(
            text.contains("blackhole-supervisor") && text.contains("blackhole-shim"),
            "{text}"
        );
        assert!(!text.contains("blackhole-bridge"), "{text}");
        assert!(text.contains("cargo build --workspace --bins"), "{text}");
    }
}
