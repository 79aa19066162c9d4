//! As a user without rights: it works, says what it cannot do, and refuses
//! only those who require it.

use blackhole_bus_schema::limits::{Enforcement, Limits};
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::resource::GetCapacity;

use crate::support::{Setup, code};

#[tokio::test]
async fn limits_are_reported_and_required_ones_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: takes root to become nobody");
        return;
    }
    let mut setup = Setup::new("");
    for dir in [
        setup.root().to_owned(),
        setup.dirs.run.clone(),
        setup.dirs.state.clone(),
    ] {
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).unwrap();
    }
    setup.start(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--no-new-privs",
    ]);
    let client = setup.client().await;
    let notes = client.link.info().unwrap().notes;
    assert!(
        notes.iter().any(|note| note.contains("not enforced")),
        "{notes:?}"
    );
    let capacity = client.ask(&GetCapacity {}).await.unwrap();
    assert_eq!(capacity.cgroups, "none");
    assert!(capacity.problem.is_some());
    assert!(capacity.cpu_percent > 0 && capacity.memory_bytes > 0);

    let mut limits = Limits {
        cpu_percent: Some(10),
        memory_bytes: Some(1 << 20),
        cpu_request_percent: Some(1),
        ..Limits::default()
    };
    let grant = client.prepare("web.1", limits.clone()).await.unwrap();
    assert_eq!(grant.cgroups, []);
    assert_eq!(grant.version, None);
    assert_eq!(grant.report.len(), 2);
    for line in &grant.report {
        assert!(
            matches!(line.enforcement, Enforcement::NotEnforced { .. }),
            "{line:?}"
        );
    }
    // Admission works all the same.
    assert_eq!(client.reserved().await, (1, 0, 1));
    limits.required = true;
    let (refused, text) = code(client.prepare("strict.1", limits.clone()).await);
    assert_eq!(refused, Code::FailedPrecondition);
    assert!(text.contains("strict.1 requires its limits"), "{text}");
    // The weights that everybody has were not asked for; others were.
    limits.cpu_weight = Some(100);
    limits.io_weight = Some(400);
    let (_, text) = code(client.prepare("strict.1", limits.clone()).await);
    for (name, named) in [
        ("cpu_percent: ", true),
        ("memory_mb: ", true),
        ("io_weight: ", true),
        ("cpu_weight: ", false),
        ("pids: ", false),
    ] {
        assert_eq!(text.contains(name), named, "{name} {text}");
    }
    assert_eq!(
        client.reserved().await.2,
        1,
        "a refused one reserves nothing"
    );
    // Required limits without a limit are nothing to refuse.
    let none = Limits {
        required: true,
        cpu_weight: Some(100),
        io_weight: Some(100),
        ..Limits::default()
    };
    client.prepare("strict.1", none).await.unwrap();
    client.release("strict.1").await.unwrap();
    client.release("web.1").await.unwrap();
    setup.stop().await;
}
