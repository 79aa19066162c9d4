//! What `start` and `status` say of services that are through.
#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_tests::Deployment;

#[test]
fn a_one_shot_that_is_through_has_completed() {
    let deployment = Deployment::new(
        r#"
services:
  migrate: {command: [sh, -c, "echo migrated"], oneshot: true}
  off: {command: [blackhole-example, idle], autostart: false}
"#,
    );
    deployment.up();
    let status = deployment.status();
    let migrate = status.instance("migrate.1");
    assert_eq!(migrate.phase(), Some("completed"), "{migrate:?}");
    assert_eq!(migrate.0["last_exit"]["code"], 0, "{migrate:?}");
    assert_eq!(status.instance("off.1").phase(), Some("idle"));
    let table = deployment.cli(&["status", "migrate"]).ok().stdout;
    assert!(
        table.contains("completed") && table.contains("exit code 0"),
        "{table}"
    );
    let logged = || {
        let log = deployment.cli(&["logs", "migrate"]).ok().stdout;
        log.matches("migrated").count()
    };
    let again = deployment.cli(&["start", "migrate"]).ok();
    let words = "migrate.1 has completed already (exit code 0), and is not run again";
    assert!(again.stderr.contains(words), "{again:#?}");
    assert!(again.stdout.contains("completed"), "{again:#?}");
    assert_eq!(logged(), 1);
    deployment.cli(&["restart", "migrate"]).ok();
    assert_eq!(logged(), 2);
    // Stopped it is not through any more.
    deployment.cli(&["stop", "migrate"]).ok();
    assert_eq!(
        deployment.status().instance("migrate.1").phase(),
        Some("idle")
    );
    let anew = deployment.cli(&["start", "migrate"]).ok();
    assert!(!anew.stderr.contains("completed already"), "{anew:#?}");
    assert_eq!(logged(), 3);
    deployment.down();
}
