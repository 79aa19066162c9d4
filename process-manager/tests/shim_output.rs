//! Output in every shape, and what a service says of itself.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::fs;
use std::os::unix::net::UnixDatagram;

use blackhole_bus_schema::process::{ExitResult, LogSpec};
use blackhole_process_manager::shim::client::{ShimEvent, attach, read_record};
use shim_support::{Rig, line_of, spec, until};

#[tokio::test]
async fn logs_rotate_while_the_service_runs_and_across_its_lives() {
    let rig = Rig::new().await;
    let mut spec = rig.script("for i in $(seq 1 400); do echo line $i of this life; done");
    spec.logs = LogSpec {
        max_bytes: 10_000,
        max_files: 3,
        ..LogSpec::default()
    };
    for _ in 0..2 {
        let mut running = rig.spawn(&spec).await;
        assert_eq!(running.exited().await.result, ExitResult::Success);
    }
    let folder = rig.folder(&spec);
    let names = rig.log_names(&spec);
    assert_eq!(names.len(), 4, "{names:?}");
    for name in names {
        let size = fs::metadata(folder.join(&name)).unwrap().len();
        assert!(
            size <= 10_000 && (name == "log" || size > 9_000),
            "{name}: {size}"
        );
    }
    let log = rig.log(&spec);
    let numbers: Vec<u32> = log
        .lines()
        .map(|line| line.split(' ').nth(1).unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers.last(), Some(&400));
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] % 400 + 1),
        "no line is missing between files"
    );
}

#[tokio::test]
async fn an_endless_line_and_bytes_that_are_no_text_pass() {
    let rig = Rig::new().await;
    let spec =
        rig.script("head -c 5000000 /dev/zero | tr '\\0' x; printf 'a\\377\\000b\\r\\nend\\n'");
    let mut running = rig.spawn(&spec).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
    let bytes = fs::read(rig.folder(&spec).join("log")).unwrap();
    let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let x = bytes.iter().filter(|byte| **byte == b'x').count();
    assert_eq!(x, 5_000_000);
    assert!(
        lines.iter().all(|line| line.len() < 16 * 1024 + 100),
        "pieces are bounded"
    );
    assert!(lines[lines.len() - 2].ends_with(b"a\xff\x00b\r\n"));
    assert!(
        lines[0].windows(8).any(|part| part == b" out P x")
            && lines[lines.len() - 1].ends_with(b" out F end\n")
    );
}

#[tokio::test]
async fn a_full_disk_costs_lines_not_the_service() {
    let rig = Rig::new().await;
    let go = rig.path("go");
    let spec = rig.script(&format!(
        "echo one; echo two >&2; while ! test -e {0}; do sleep 0.01; done; \
         head -c 3000000 /dev/zero | tr '\\0' '\\n'; echo done > {0}",
        go.display()
    ));
    let folder = rig.folder(&spec);
    fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.join("log")).unwrap();
    let mut running = rig.spawn(&spec).await;
    let loss = loop {
        match running.next().await {
            ShimEvent::Loss(loss) if loss.log_lines == 2 => break loss,
            ShimEvent::Loss(loss) => assert!(loss.log_lines < 2, "{loss:?}"),
            other => panic!("{other:?}"),
        }
    };
    assert!(loss.log_error.unwrap().contains("No space left"));
    assert_eq!(running.handle.status().await.unwrap().loss.log_lines, 2);
    fs::write(&go, "").unwrap();
    assert_eq!(line_of(&go).await, "done");
    let loss = loop {
        if let ShimEvent::Exited { exit, loss } = running.next().await {
            assert_eq!(exit.result, ExitResult::Success);
            break loss;
        }
    };
    assert_eq!((loss.log_lines, loss.record_writes), (3_000_002, 0));
}

#[tokio::test]
async fn a_record_that_cannot_be_written_is_reported_and_written_later() {
    let rig = Rig::new().await;
    let go = rig.path("go");
    let spec = rig.script(&format!(
        "while ! test -e {}; do sleep 0.01; done",
        go.display()
    ));
    let folder = rig.folder(&spec);
    // In the way of the file that is written first.
    fs::create_dir_all(folder.join("record.new")).unwrap();
    let mut running = rig.spawn(&spec).await;
    match running.next().await {
        ShimEvent::Loss(loss) => assert!(
            loss.record_writes == 1 && loss.record_error.is_some(),
            "{loss:?}"
        ),
        other => panic!("{other:?}"),
    }
    assert!(!folder.join("record").exists());
    fs::remove_dir(folder.join("record.new")).unwrap();
    // Tried again by itself, and told.
    match running.next().await {
        ShimEvent::Loss(loss) => assert_eq!(loss.record_error, None, "{loss:?}"),
        other => panic!("{other:?}"),
    }
    let record = read_record(&folder).unwrap().unwrap();
    assert_eq!(record.started.as_ref(), Some(&running.started));
    fs::write(&go, "").unwrap();
    let exit = running.exited().await;
    let record = read_record(&folder).unwrap().unwrap();
    assert_eq!(
        (record.started, record.exit),
        (Some(running.started), Some(exit))
    );
}

/// Not a test by itself: a service that says the lines of `BH_SAY` over its
/// notification socket, one datagram each, and then waits.
#[test]
fn helper_that_notifies() {
    let Ok(say) = std::env::var("BH_SAY") else {
        return;
    };
    let path = std::env::var("NOTIFY_SOCKET").unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    for message in say.split('|') {
        socket.send_to(message.as_bytes(), &path).unwrap();
    }
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn what_a_service_says_of_itself_is_heard_and_kept() {
    let rig = Rig::new().await;
    let exe = std::env::current_exe().unwrap();
    let mut spec = spec(
        "web.1",
        &[
            exe.to_str().unwrap(),
            "--exact",
            "helper_that_notifies",
            "--nocapture",
        ],
    );
    spec.env.insert(
        "BH_SAY".into(),
        "STATUS=warming up|READY=1\nSTATUS=42 sessions\nWATCHDOG=1|X=1".into(),
    );
    let mut running = rig.spawn(&spec).await;
    let notify = loop {
        match running.next().await {
            ShimEvent::Notify(notify) if notify.ready => break notify,
            ShimEvent::Notify(notify) => assert_eq!(notify.status.as_deref(), Some("warming up")),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(notify.status.as_deref(), Some("42 sessions"));
    assert!(notify.watchdog_age_ms.is_some() && !notify.stopping);
    // Somebody else's word is not the service's.
    let path = format!("{}.n", rig.dirs.shim_socket(&spec.instance).display());
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"STATUS=I am a stranger", &path)
        .unwrap();
    drop(running);
    let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    assert!(attached.status.notify.ready);
    assert_eq!(
        attached.status.notify.status.as_deref(),
        Some("42 sessions")
    );
}

#[tokio::test]
async fn a_short_lived_child_may_speak_for_the_service() {
    let rig = Rig::new().await;
    let exe = std::env::current_exe().unwrap();
    let spec = {
        let mut spec = rig.script(&format!(
            "timeout -s KILL 0.5 {} --exact helper_that_notifies --nocapture; exec sleep 1000",
            exe.display()
        ));
        spec.env.insert("BH_SAY".into(), "READY=1".into());
        spec
    };
    let mut running = rig.spawn(&spec).await;
    match running.next().await {
        ShimEvent::Notify(notify) => assert!(notify.ready),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_service_that_writes_without_end_does_not_keep_its_shim_from_stopping_it() {
    let rig = Rig::new().await;
    let mut spec = spec("web.1", &["yes"]);
    spec.logs = LogSpec {
        max_bytes: 1 << 20,
        max_files: 1,
        ..LogSpec::default()
    };
    let mut running = rig.spawn(&spec).await;
    let folder = rig.folder(&spec);
    until("it has rotated", || {
        (folder.exists() && rig.log_names(&spec).len() > 1).then_some(())
    })
    .await;
    running.handle.stop(Default::default()).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
}
