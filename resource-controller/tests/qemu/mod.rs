//! The same tests once more on a host with nothing but v2: this program runs
//! itself in a virtual machine. Ignored by default, since it needs qemu, a
//! static busybox and (once) a kernel from Debian's archive:
//! `cargo nextest run -p blackhole-resource-controller --run-ignored only`.

use std::path::Path;
use std::process::Command;

/// Runs this test program in the guest, with `files` beside it.
pub(crate) fn run_in_guest(files: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu/run");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu");
    let output = Command::new(script)
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
    assert!(
        !text.contains("skipped:"),
        "the guest cannot do what it is there for"
    );
}
