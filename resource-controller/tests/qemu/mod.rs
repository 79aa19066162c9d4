//! The same tests once more on hosts with nothing but v1 or v2: this program
//! runs itself in a virtual machine. Ignored by default, since it needs qemu, a
//! static busybox and (once) a kernel from Debian's archive:
//! `cargo nextest run -p blackhole-resource-controller --run-ignored only`.

use std::path::Path;
use std::process::Command;

/// Runs this test program in a guest with cgroups of `version` (`v1` or `v2`),
/// with `files` beside it.
pub(crate) fn run_in_guest(version: &str, files: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu/run");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu");
    let output = Command::new(script)
        .arg(version)
        .arg(cache)
        .arg(std::env::current_exe().unwrap())
        .args(files)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "")
        + &String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success(), "{}", output.status);
    assert!(
        text.contains("test result: ok."),
        "the guest came to no result"
    );
    // A test says so where it cannot run; on v1 only those of cgroup.kill do.
    let skipped: Vec<_> = text
        .lines()
        .filter(|line| line.contains("skipped: ") && !line.contains("cgroup.kill"))
        .collect();
    assert_eq!(skipped, Vec::<&str>::new());
}
