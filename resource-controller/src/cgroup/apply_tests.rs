//! Plain files stand for a group's control files: they take what is written
//! and give it back, which shows what is written where and how an answer is judged.

use std::fs;

use super::*;

fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn text(dir: &tempfile::TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap()
}

fn all_at(place: Place) -> Places {
    Places {
        cpu: place.clone(),
        memory: place.clone(),
        io: place.clone(),
        pids: place,
    }
}

fn limits() -> Limits {
    Limits {
        cpu_percent: Some(50),
        cpu_weight: Some(200),
        memory_bytes: Some(64 << 20),
        io_weight: Some(100),
        pids: Some(20),
        ..Limits::default()
    }
}

const V2_FILES: &[(&str, &str)] = &[
    ("cpu.max", "max 100000\n"),
    ("cpu.weight", "100\n"),
    ("memory.max", "max\n"),
    ("memory.swap.max", "max\n"),
    ("memory.oom.group", "0\n"),
    ("io.weight", "default 100\n"),
    ("pids.max", "max\n"),
];

#[test]
fn v2_files_get_what_the_documentation_asks_for() {
    let dir = group(V2_FILES);
    let places = all_at(Place::V2(dir.path().to_owned()));
    let report = apply(&places, &limits(), &IoEffect::default());
    assert_eq!(report.len(), 5);
    for line in &report {
        assert_eq!(line.enforcement, Enforcement::Enforced, "{line:?}");
        assert_eq!(line.actual, Some(line.requested));
    }
    assert_eq!(text(&dir, "cpu.max"), "50000 100000");
    assert_eq!(text(&dir, "cpu.weight"), "200");
    assert_eq!(text(&dir, "memory.max"), (64 << 20).to_string());
    assert_eq!(text(&dir, "memory.swap.max"), "0");
    assert_eq!(text(&dir, "memory.oom.group"), "1");
    assert_eq!(text(&dir, "io.weight"), "100");
    assert_eq!(text(&dir, "pids.max"), "20");

    // What is no longer asked for is lifted.
    assert_eq!(apply(&places, &Limits::default(), &IoEffect::default()), []);
    assert_eq!(text(&dir, "cpu.max"), "max 100000");
    assert_eq!(text(&dir, "cpu.weight"), "100");
    assert_eq!(text(&dir, "memory.max"), "max");
    assert_eq!(text(&dir, "memory.swap.max"), "max");
    assert_eq!(text(&dir, "pids.max"), "max");
}

#[test]
fn v1_files_get_what_the_documentation_asks_for() {
    let dir = group(&[
        ("cpu.cfs_quota_us", "-1\n"),
        ("cpu.cfs_period_us", "50000\n"),
        ("cpu.shares", "1024\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
        ("blkio.weight", "500\n"),
        ("pids.max", "max\n"),
    ]);
    let places = all_at(Place::V1(dir.path().to_owned()));
    let report = apply(&places, &limits(), &IoEffect::default());
    assert!(
        report
            .iter()
            .all(|line| line.enforcement == Enforcement::Enforced),
        "{report:?}"
    );
    assert_eq!(text(&dir, "cpu.cfs_quota_us"), "50000");
    assert_eq!(text(&dir, "cpu.cfs_period_us"), "100000");
    assert_eq!(text(&dir, "cpu.shares"), "2048");
    assert_eq!(
        text(&dir, "memory.memsw.limit_in_bytes"),
        (64 << 20).to_string()
    );
    assert_eq!(text(&dir, "blkio.weight"), "500");
}

#[test]
fn a_weight_beyond_the_range_or_without_effect_holds_in_part() {
    let dir = group(&[("blkio.bfq.weight", "100\n")]);
    let place = Place::V1(dir.path().to_owned());
    let line = io_weight(&place, Some(5000), &IoEffect::default()).unwrap();
    assert_eq!(line.actual, Some(1000));
    let Enforcement::Partly { reason } = &line.enforcement else {
        panic!("{line:?}")
    };
    assert!(reason.contains("1000"), "{reason}");

    let line = io_weight(&place, Some(300), &IoEffect::default()).unwrap();
    let Enforcement::Partly { reason } = &line.enforcement else {
        panic!("{line:?}")
    };
    assert!(reason.contains("BFQ"), "{reason}");
}

#[test]
fn a_missing_file_is_named() {
    let dir = group(&[]);
    for place in [
        Place::V1(dir.path().to_owned()),
        Place::V2(dir.path().to_owned()),
    ] {
        let mut limits = limits();
        limits.io_weight = Some(300);
        let report = apply(&all_at(place.clone()), &limits, &IoEffect::default());
        assert_eq!(report.len(), 5);
        let normal = io_weight(&place, Some(100), &IoEffect::default()).unwrap();
        assert!(matches!(normal.enforcement, Enforcement::Partly { .. }));
        for line in report {
            let Enforcement::NotEnforced { reason } = &line.enforcement else {
                panic!("{line:?}")
            };
            assert!(reason.contains("the kernel has n"), "{reason}");
            assert_eq!(line.actual, None);
        }
    }
}

#[test]
fn a_missing_controller_is_reported_for_what_was_asked() {
    let places = all_at(Place::Missing("no pids here".to_owned()));
    let asked = Limits {
        pids: Some(3),
        ..Limits::default()
    };
    let report = apply(&places, &asked, &IoEffect::default());
    assert_eq!(report.len(), 1);
    assert_eq!(
        report[0].enforcement,
        Enforcement::NotEnforced {
            reason: "no pids here".to_owned()
        }
    );
}

#[test]
fn judgement_follows_what_is_read_back() {
    let judge = || Judge::new(LimitKind::Memory, 1000);
    let enforcement =
        |judge: Judge, written, read| judge.report(written, read).unwrap().enforcement;
    fn refused<T>() -> Result<T, String> {
        Err("refused".to_owned())
    }

    assert_eq!(
        enforcement(judge(), Ok(()), Ok(Some(1000))),
        Enforcement::Enforced
    );
    // Right already although the write was refused.
    assert_eq!(
        enforcement(judge(), refused(), Ok(Some(1000))),
        Enforcement::Enforced
    );
    assert!(matches!(
        enforcement(judge(), Ok(()), Ok(Some(7))),
        Enforcement::Partly { .. }
    ));
    assert!(matches!(
        enforcement(judge(), refused(), Ok(Some(7))),
        Enforcement::Partly { .. }
    ));
    assert!(matches!(
        enforcement(judge(), Ok(()), Ok(None)),
        Enforcement::NotEnforced { .. }
    ));
    assert!(matches!(
        enforcement(judge(), Ok(()), refused()),
        Enforcement::NotEnforced { .. }
    ));
    assert!(matches!(
        enforcement(judge(), refused(), refused()),
        Enforcement::NotEnforced { .. }
    ));
    let weight = Judge {
        old_value_counts: false,
        ..judge()
    };
    assert!(matches!(
        enforcement(weight, refused(), Ok(Some(100))),
        Enforcement::NotEnforced { .. }
    ));
}

#[test]
fn rounding_to_pages_is_the_same_value() {
    let page = rustix::param::page_size() as u64;
    assert!(same_pages(10 * page + 5, 10 * page));
    assert!(!same_pages(10 * page, 9 * page));
    assert!(!same_pages(10 * page, 11 * page));
}

#[test]
fn weights_are_read_with_and_without_the_word_default() {
    assert_eq!(default_weight("100\n"), Some(100));
    assert_eq!(default_weight("default 300\n8:0 50\n"), Some(300));
    assert_eq!(default_weight(""), None);
}
