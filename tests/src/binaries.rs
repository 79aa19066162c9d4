//! Where the programs under test are: beside the tests, in the target
//! directory of the same profile.

use std::path::{Path, PathBuf};

/// All programs of a deployment, without which no test can do anything.
pub const ALL: [&str; 7] = [
    "blackhole",
    "blackhole-bridge",
    "blackhole-example",
    "blackhole-process-manager",
    "blackhole-resource-controller",
    "blackhole-shim",
    "blackhole-supervisor",
];

/// The directory of the programs: a test is `<target>/<profile>/deps/<name>`.
///
/// # Panics
/// When a program is missing, with the command that builds it.
#[track_caller]
pub fn directory() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let directory = test
        .parent()
        .and_then(Path::parent)
        .expect("a test lies in <profile>/deps");
    for program in ALL {
        let path = directory.join(program);
        assert!(
            path.is_file(),
            "{} is missing: build it with `cargo build --workspace --bins`",
            path.display()
        );
    }
    directory.to_owned()
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package lies in the repository")
        .to_owned()
}

/// `directory` before the usual ones; what a person's shell would have is left
/// out, so that tests do not depend on it.
pub fn path_with(directory: &Path) -> String {
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        directory.display()
    )
}
