//! Logs, read and followed over the bus.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;

use blackhole_bus_schema::bus::LogLane;
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::process::{
    FollowLog, LogChunk, LogCursor, LogLines, LogSpec, ReadLog, StateName,
};
use blackhole_bus_schema::reply::Code;
use support::*;

fn read(instance: &str, lines: u32, cursor: Option<LogCursor>) -> ReadLog {
    ReadLog {
        instance: name(instance),
        lines,
        cursor,
        since: None,
        max_bytes: None,
    }
}

/// The text of a line, after time, instance, stream and kind.
fn text(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    line.splitn(5, ' ')
        .nth(4)
        .unwrap_or_else(|| panic!("{line}"))
        .to_owned()
}

fn texts(chunk: &LogChunk) -> Vec<String> {
    chunk.lines.iter().map(|line| text(line)).collect()
}

/// Runs a script to its end and waits until its log is written.
async fn finished(bench: &mut Bench, generation: u64, script: &str, logs: LogSpec) {
    let mut service = support::script("web.1", generation, script);
    service.logs = logs;
    bench.run(&service).await;
    bench
        .state("web.1", generation, StateName::Terminated)
        .await;
}

#[tokio::test]
async fn the_last_lines_and_what_comes_after_them() {
    let mut bench = Bench::start().await;
    finished(
        &mut bench,
        1,
        "seq 1 100; echo oops >&2",
        LogSpec::default(),
    )
    .await;
    let chunk = bench.request(&read("web.1", 3, None)).await.unwrap();
    assert_eq!(texts(&chunk), ["99", "100", "oops"]);
    assert!(!chunk.more && !chunk.gap);
    let line = String::from_utf8(chunk.lines[2].clone()).unwrap();
    assert!(line.contains(" web.1 err F oops"), "{line}");
    finished(&mut bench, 2, "echo second", LogSpec::default()).await;
    let next = bench
        .request(&read("web.1", 0, chunk.cursor))
        .await
        .unwrap();
    assert_eq!(texts(&next), ["second"]);
    // Of what is not there nothing is known.
    let unknown = refused(bench.request(&read("nope.1", 3, None)).await);
    assert_eq!(unknown.code, Code::NotFound);
}

#[tokio::test]
async fn a_long_log_comes_in_pages_through_its_rotated_files() {
    let mut bench = Bench::start().await;
    let logs = LogSpec {
        max_bytes: 200_000,
        max_files: 50,
        ..LogSpec::default()
    };
    finished(&mut bench, 1, "seq 1 30000", logs).await;
    let mut chunk = bench.request(&read("web.1", 29_000, None)).await.unwrap();
    let mut pages = 1;
    let mut all = texts(&chunk);
    while chunk.more {
        chunk = bench
            .request(&read("web.1", 0, chunk.cursor))
            .await
            .unwrap();
        assert!(!chunk.gap);
        all.extend(texts(&chunk));
        pages += 1;
    }
    let expected: Vec<String> = (1001..=30_000)
        .map(|number: u32| number.to_string())
        .collect();
    assert_eq!(all, expected);
    assert!(pages > 2, "{pages}");
}

#[tokio::test]
async fn what_was_rotated_away_is_a_gap() {
    let mut bench = Bench::start().await;
    finished(&mut bench, 1, "echo first", LogSpec::default()).await;
    let cursor = bench.request(&read("web.1", 1, None)).await.unwrap().cursor;
    let logs = LogSpec {
        max_bytes: 20_000,
        max_files: 2,
        ..LogSpec::default()
    };
    finished(&mut bench, 2, "seq 1 20000", logs).await;
    let chunk = bench.request(&read("web.1", 0, cursor)).await.unwrap();
    assert!(chunk.gap);
    assert_eq!(texts(&chunk).last().map(String::as_str), Some("20000"));
}

/// Receives followed lines until one with this text.
async fn follow_until(lane: &LogLane, last: &str) -> (Vec<String>, u64) {
    let (mut seen, mut dropped) = (Vec::new(), 0);
    loop {
        let received = tokio::time::timeout(LIMIT, lane.recv()).await;
        let Ok(received) = received else {
            panic!("waited in vain for {last:?}, saw {seen:?}")
        };
        let batch: LogLines = received.unwrap().parse().unwrap();
        assert_eq!(batch.instance, name("web.1"));
        dropped += batch.dropped;
        seen.extend(batch.lines.iter().map(|line| text(line)));
        if seen.last().is_some_and(|line| line == last) {
            return (seen, dropped);
        }
    }
}

/// A lane whose path is proven: lines of the service have come through it.
async fn lane(bench: &Bench) -> LogLane {
    let lane = LogLane::open(&bench.dirs, &Component::ProcessManager(None))
        .await
        .unwrap();
    lane.subscribe(&name("web.1")).await.unwrap();
    lane
}

fn follow(cursor: Option<LogCursor>, lease_ms: u64) -> FollowLog {
    FollowLog {
        instance: name("web.1"),
        cursor,
        lease_ms,
    }
}

#[tokio::test]
async fn new_lines_are_followed_through_rotations_until_the_end() {
    let mut bench = Bench::start().await;
    let go = bench.path("go");
    let text = format!(
        "while [ ! -e {0} ]; do echo waiting; sleep 0.02; done; \
         for i in $(seq 1 2000); do echo line $i; done; echo the end; exec sleep 100000",
        go.display()
    );
    let mut service = script("web.1", 1, &text);
    service.logs = LogSpec {
        max_bytes: 30_000,
        max_files: 20,
        ..LogSpec::default()
    };
    bench.run(&service).await;
    let lane = lane(&bench).await;
    bench.request(&follow(None, 60_000)).await.unwrap();
    follow_until(&lane, "waiting").await;
    std::fs::write(&go, "").unwrap();
    let (seen, dropped) = follow_until(&lane, "the end").await;
    let lines: Vec<&String> = seen
        .iter()
        .filter(|line| line.starts_with("line "))
        .collect();
    let expected: Vec<String> = (1..=2000).map(|number| format!("line {number}")).collect();
    assert_eq!(dropped, 0);
    assert!(
        lines.into_iter().eq(expected.iter()),
        "{} of 2000",
        seen.len()
    );
    // The events of the bus are not mixed with it.
    bench.settle().await;
    assert_eq!(bench.passed("web.1").len(), 2);
}

#[tokio::test]
async fn one_may_begin_where_reading_ended() {
    let mut bench = Bench::start().await;
    finished(&mut bench, 1, "seq 1 10", LogSpec::default()).await;
    let chunk = bench.request(&read("web.1", 100, None)).await.unwrap();
    assert_eq!(chunk.lines.len(), 10);
    finished(&mut bench, 2, "seq 11 20", LogSpec::default()).await;
    let lane = lane(&bench).await;
    // Until the subscription is known to be there the lines may be lost: ask again.
    let link = bench.link.clone();
    let cursor = chunk.cursor;
    let asking = tokio::spawn(async move {
        loop {
            link.request(&follow(cursor, 60_000), LIMIT).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let (seen, _) = follow_until(&lane, "20").await;
    asking.abort();
    let distinct: BTreeSet<u32> = seen.iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(distinct, (11..=20).collect());
}

#[tokio::test]
async fn a_flood_is_jumped_after_and_counted() {
    let bench = Bench::start().await;
    let go = bench.path("go");
    let text = format!(
        "while [ ! -e {0} ]; do echo waiting; sleep 0.02; done; \
         seq 1 400000; echo the end; exec sleep 100000",
        go.display()
    );
    let mut service = script("web.1", 1, &text);
    service.logs = LogSpec {
        max_bytes: 1_000_000,
        max_files: 100,
        compress: false,
        ..LogSpec::default()
    };
    bench.run(&service).await;
    let lane = lane(&bench).await;
    bench.request(&follow(None, 600_000)).await.unwrap();
    follow_until(&lane, "waiting").await;
    std::fs::write(&go, "").unwrap();
    let (seen, dropped) = follow_until(&lane, "the end").await;
    let numbers: Vec<u64> = seen.iter().filter_map(|line| line.parse().ok()).collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] < pair[1]),
        "out of order or twice"
    );
    // Never more than is missing; what the lane itself let go is not known to the manager.
    let folder = bench.dirs.instance(&name("web.1"));
    let written: usize = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().starts_with("log"))
        .map(|entry| {
            std::fs::read(entry.path())
                .unwrap()
                .split(|byte| *byte == b'\n')
                .count()
                - 1
        })
        .sum();
    assert!(
        seen.len() as u64 + dropped <= written as u64,
        "{} + {dropped} of {written}",
        seen.len()
    );
    bench.stop("web.1", 1).await.unwrap();
}

/// The number that a counting service has got to.
async fn counted(bench: &Bench) -> u64 {
    let chunk = bench.request(&read("web.1", 1, None)).await.unwrap();
    texts(&chunk).last().map_or(0, |line| line.parse().unwrap())
}

#[tokio::test]
async fn leases_end() {
    let bench = Bench::start().await;
    let text = "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.01; done";
    bench.run(&script("web.1", 1, text)).await;
    let lane = lane(&bench).await;
    bench.request(&follow(None, 1)).await.unwrap();
    // Long after the lease: nobody follows.
    let after = counted(&bench).await + 30;
    while counted(&bench).await < after {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    bench.request(&follow(None, 600_000)).await.unwrap();
    let mut last = 0;
    let mut jumped = false;
    while last < after + 5 {
        let received = tokio::time::timeout(LIMIT, lane.recv())
            .await
            .expect("lines")
            .unwrap();
        let batch: LogLines = received.parse().unwrap();
        for line in &batch.lines {
            let number: u64 = self::text(line).parse().unwrap();
            jumped |= number > last + 1 && number >= after;
            last = number;
        }
    }
    assert!(jumped, "lines were published after the lease had ended");
    let unknown = FollowLog {
        instance: name("nope.1"),
        cursor: None,
        lease_ms: 1000,
    };
    assert_eq!(refused(bench.request(&unknown).await).code, Code::NotFound);
}
