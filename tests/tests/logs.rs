//! Logs from end to end: what services write is found again, however it was
//! rotated, compressed, followed or asked for.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use blackhole_tests::{Deployment, wait_for};
use serde_json::Value;

/// The names of the log files of an instance.
fn names(deployment: &Deployment, instance: &str) -> Vec<String> {
    let directory = deployment.path().join("state/instances").join(instance);
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("log"))
        .collect();
    names.sort();
    names
}

/// Lines as a program gets them.
fn items(deployment: &Deployment, arguments: &[&str]) -> Vec<Value> {
    let mut all = vec!["logs", "-o", "json"];
    all.extend(arguments);
    let output = deployment.cli(&all).ok().stdout;
    output
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object a line"))
        .collect()
}

fn texts(items: &[Value]) -> Vec<&str> {
    items
        .iter()
        .map(|item| item["text"].as_str().expect("a text"))
        .collect()
}

/// The same over the bus and from the files.
#[track_caller]
fn shown(deployment: &Deployment, arguments: &[&str]) -> Vec<Value> {
    let asked = items(deployment, arguments);
    let mut offline = vec!["--offline"];
    offline.extend(arguments);
    assert_eq!(items(deployment, &offline), asked, "{arguments:?} offline");
    asked
}

#[track_caller]
fn wait_for_text(deployment: &Deployment, service: &str, text: &str) {
    wait_for(text, || {
        let log = deployment.cli(&["logs", service, "-n", "1"]).ok().stdout;
        match log.trim_end().ends_with(text) {
            true => Ok(()),
            false => Err(log),
        }
    });
}

#[test]
fn lines_are_found_by_time_stream_pattern_and_number() {
    let deployment = Deployment::new(
        r#"
services:
  one:
    command: [sh, -c, "for i in 1 2 3 4 5 6; do echo one $i; sleep 0.02; echo oops $i >&2; sleep 0.02; done; echo end; exec sleep 100000"]
  two:
    command: [sh, -c, "for i in 1 2 3 4 5 6; do echo two $i; sleep 0.03; done; printf 'a\\377b\\n'; exec sleep 100000"]
    logs: {format: json}
"#,
    );
    deployment.up();
    wait_for_text(&deployment, "one", "end");
    wait_for("the last line of two", || {
        match items(&deployment, &["two"]).len() {
            7 => Ok(()),
            other => Err(other.to_string()),
        }
    });

    let all = shown(&deployment, &[]);
    assert_eq!(all.len(), 13 + 7);
    let times: Vec<&str> = all
        .iter()
        .map(|item| item["at"].as_str().expect("a time"))
        .collect();
    assert!(times.is_sorted(), "{times:?}");

    let errors = shown(&deployment, &["--stream", "err"]);
    assert_eq!(
        texts(&errors),
        ["oops 1", "oops 2", "oops 3", "oops 4", "oops 5", "oops 6"]
    );
    assert_eq!(
        texts(&shown(&deployment, &["--stream", "err", "-n", "2"])),
        ["oops 5", "oops 6"]
    );
    assert_eq!(
        texts(&shown(&deployment, &["one", "-n", "2"])),
        ["oops 6", "end"]
    );
    assert_eq!(
        texts(&shown(&deployment, &["--grep", "^(two|oops) 3$"])).len(),
        2
    );
    assert_eq!(
        texts(&shown(&deployment, &["one", "--grep", "one|oops", "-v"])),
        ["end"]
    );
    assert_eq!(
        texts(&shown(&deployment, &["--grep", "o", "-n", "1"])),
        ["two 6", "oops 6"]
    );

    // From one line to another, both included.
    let (first, last) = (&all[5], &all[11]);
    let between = shown(
        &deployment,
        &[
            "--since",
            first["at"].as_str().expect("a time"),
            "--until",
            last["at"].as_str().expect("a time"),
        ],
    );
    assert_eq!(between, all[5..=11]);
    assert_eq!(shown(&deployment, &["--since", "1h"]), all);
    assert!(shown(&deployment, &["--until", "1h ago"]).is_empty());

    // Bytes that are no text come through a program's form exactly.
    let binary = shown(&deployment, &["two", "-n", "1"]);
    assert_eq!(binary[0]["base64"], "Yf9i");
    let raw = deployment.cli(&["logs", "two", "-n", "1"]).ok().stdout;
    assert!(raw.contains("two.1"), "{raw}");
    let file = std::fs::read_to_string(deployment.path().join("state/instances/two.1/log"))
        .expect("UTF-8");
    for line in file.lines() {
        let line: Value = serde_json::from_str(line).expect("a JSON object");
        assert!(line["instance"] == "two.1" && line["stream"] == "out" && line["partial"] == false);
    }

    for bad in [
        &["logs", "--since", "soon"][..],
        &["logs", "--grep", "("],
        &["logs", "--stream", "both"],
    ] {
        deployment.cli(bad).exits_with(2);
    }
    deployment.down();
}

#[test]
fn what_was_written_before_the_latest_start() {
    let deployment = Deployment::new(
        r#"
services:
  web:
    command: [sh, -c, "n=$(cat count 2>/dev/null || echo 0); n=$((n + 1)); echo $n > count; echo begin $n; trap 'echo end '$n'; exit 0' TERM; while :; do sleep 0.05; done"]
    working_dir: .
"#,
    );
    deployment.up();
    wait_for_text(&deployment, "web", "begin 1");
    deployment.cli(&["logs", "--previous"]).exits_with(1);
    deployment.cli(&["restart", "web"]).ok();
    wait_for_text(&deployment, "web", "begin 2");
    assert_eq!(
        texts(&shown(&deployment, &["--previous"])),
        ["begin 1", "end 1"]
    );
    deployment.cli(&["restart", "web"]).ok();
    wait_for_text(&deployment, "web", "begin 3");
    assert_eq!(
        texts(&shown(&deployment, &["web", "--previous", "-n", "2"])),
        ["begin 2", "end 2"]
    );
    // Of one that is stopped the latest start is that of its last process.
    deployment.cli(&["stop", "web"]).ok();
    assert_eq!(
        texts(&shown(&deployment, &["--previous"])),
        ["begin 1", "end 1", "begin 2", "end 2"]
    );
    deployment.down();
}

#[test]
fn rotated_files_are_compressed_and_nothing_is_missing() {
    let deployment = Deployment::new(
        r#"
services:
  many:
    command: [sh, -c, "seq -f 'line %05g of many that all look alike' 1 20000; exec sleep 100000"]
    logs: {max_size: 64KiB, max_files: 100}
"#,
    );
    deployment.up();
    wait_for_text(
        &deployment,
        "many",
        "line 20000 of many that all look alike",
    );
    let files = wait_for("all rotated files to be compressed", || {
        let names = names(&deployment, "many.1");
        match names
            .iter()
            .all(|name| name == "log" || name.ends_with(".gz"))
        {
            true => Ok(names),
            false => Err(format!("{names:?}")),
        }
    });
    assert!(files.len() > 20, "{files:?}");
    let lines = shown(&deployment, &["--since", "1h"]);
    let expected: Vec<String> = (1..=20_000)
        .map(|number| format!("line {number:05} of many that all look alike"))
        .collect();
    assert_eq!(texts(&lines), expected);
    assert_eq!(
        texts(&shown(&deployment, &["-n", "7000"])),
        expected[13_000..]
    );
    assert_eq!(
        texts(&shown(&deployment, &["--grep", "^line 0000[12] "])),
        expected[..2]
    );
    let middle = lines[10_000]["at"].as_str().expect("a time");
    let from = shown(&deployment, &["--since", middle]);
    let first = lines
        .iter()
        .position(|line| line["at"] == middle)
        .expect("it");
    assert_eq!(from, lines[first..]);
    // Any gzip reads them.
    let whole = std::process::Command::new("gzip")
        .arg("-t")
        .args(
            files
                .iter()
                .filter(|name| name.ends_with(".gz"))
                .map(|name| deployment.path().join("state/instances/many.1").join(name)),
        )
        .status()
        .expect("gzip");
    assert!(whole.success());
    deployment.down();
}

/// With the clock alone: nothing is written any more, and daemons come and go.
#[test]
fn files_that_are_too_old_go_for_a_stopped_service_and_after_a_restart() {
    let deployment = Deployment::new(
        r#"
services:
  short:
    command: [sh, -c, "seq -f 'line %05g of some that fill a file or two' 1 4000"]
    oneshot: true
    logs: {max_size: 64KiB, max_files: 100, max_age: 2s}
"#,
    );
    deployment.up();
    deployment.kill_component("process-manager");
    wait_for("the rotated files to be gone", || {
        let names = names(&deployment, "short.1");
        match names == ["log"] {
            true => Ok(()),
            false => Err(format!("{names:?}")),
        }
    });
    let log = deployment
        .cli(&["--offline", "logs", "short", "-n", "1"])
        .ok()
        .stdout;
    assert!(
        log.trim_end()
            .ends_with("line 04000 of some that fill a file or two"),
        "{log}"
    );
    deployment.down();
}

/// A command that is killed with its test.
struct Following {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Following {
    fn start(deployment: &Deployment, arguments: &[&str]) -> Self {
        let mut command = deployment.command(&deployment.binaries().join("blackhole"));
        command.args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().expect("blackhole logs -f");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    fn number(&mut self) -> u64 {
        let line = self.lines.next().expect("a line").expect("a text");
        let number = line.rsplit(' ').next().and_then(|word| word.parse().ok());
        number.expect("a line with its number")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn whoever_follows_misses_nothing_when_the_manager_is_killed() {
    let deployment = Deployment::new(
        r#"
services:
  count:
    command: [sh, -c, "i=0; while :; do i=$((i + 1)); echo number $i; sleep 0.002; done"]
    logs: {max_size: 16KiB, max_files: 1000}
"#,
    );
    deployment.up();
    for arguments in [
        &["logs", "-f", "count"][..],
        &["--offline", "logs", "-f", "count"],
    ] {
        let mut following = Following::start(&deployment, arguments);
        let mut last = following.number();
        for _ in 0..3 {
            // It may not be back yet from the time before.
            deployment.wait_until("a process-manager", |status| {
                status.component_pid("process-manager").is_some()
            });
            deployment.kill_component("process-manager");
            for _ in 0..500 {
                let next = following.number();
                assert_eq!(next, last + 1, "{arguments:?}");
                last = next;
            }
        }
    }
    assert!(has_rotated(deployment.path()));
    deployment.wait_until("a process-manager", |status| {
        status.component_pid("process-manager").is_some()
    });
    deployment.down();
}

fn has_rotated(root: &Path) -> bool {
    std::fs::read_dir(root.join("state/instances/count.1"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("log.0"))
}

/// Reads what `blackhole logs -f` prints; ended when dropped.
struct Trail {
    child: Child,
    out: std::path::PathBuf,
    err: std::path::PathBuf,
}

impl Trail {
    fn begin(deployment: &Deployment, arguments: &[&str]) -> Self {
        let [out, err] = ["follow.out", "follow.err"].map(|name| deployment.path().join(name));
        let file = |path: &Path| std::fs::File::create(path).expect("a file");
        let child = deployment
            .command(&deployment.binaries().join("blackhole"))
            .arg("-c")
            .arg(deployment.config())
            .args(arguments)
            .stdout(file(&out))
            .stderr(file(&err))
            .spawn()
            .expect("it runs");
        Self { child, out, err }
    }

    #[track_caller]
    fn says(&self, words: &str) {
        Self::find(&self.out, words);
    }

    #[track_caller]
    fn notes(&self, words: &str) {
        Self::find(&self.err, words);
    }

    #[track_caller]
    fn find(path: &Path, words: &str) {
        wait_for(words, || {
            let said = std::fs::read_to_string(path).unwrap_or_default();
            said.contains(words).then_some(()).ok_or(said)
        });
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// It goes on over another life of the process-manager, and ends with the deployment,
/// after the last line.
#[test]
fn following_ends_when_everything_has_gone_down() {
    let deployment = Deployment::new(
        r#"
services:
  one: {command: [sh, -c, "trap 'echo last words; exit 0' TERM; trap 'echo again' HUP; echo up; while :; do sleep 0.05; done"]}
"#,
    );
    deployment.up();
    let mut following = Trail::begin(&deployment, &["logs", "-f", "one"]);
    following.says("up");
    deployment.kill_component("process-manager");
    deployment.wait_until("the next one", |status| status.is_in("one.1", "ready"));
    wait_for("a signal to be sent", || {
        let output = deployment.cli(&["signal", "HUP", "one"]);
        (output.code == Some(0))
            .then_some(())
            .ok_or_else(|| format!("{output:#?}"))
    });
    following.says("again");
    deployment.down();
    let status = wait_for("its end", || {
        let ended = following.child.try_wait().expect("a child");
        ended.ok_or_else(|| std::fs::read_to_string(&following.err).unwrap_or_default())
    });
    let said = std::fs::read_to_string(&following.err).expect("its notes");
    assert!(status.success(), "{said}");
    assert!(said.contains("everything has gone down"), "{said}");
    following.says("last words");
}

/// What is configured and was never started has written nothing: that is no mistake in
/// its name, and its lines can be waited for.
#[test]
fn what_was_never_started_is_known_and_can_be_followed() {
    let deployment = Deployment::new(
        r#"
services:
  web: {command: [blackhole-example, idle]}
  big: {command: [sh, -c, "echo first words; exec sleep 100000"], autostart: false}
  late: {command: [sh, -c, "echo other words; exec sleep 100000"], autostart: false}
"#,
    );
    deployment.up();
    for arguments in [
        &["logs", "big"][..],
        &["logs", "big.1", "-o", "json"],
        &["--offline", "logs", "big"],
    ] {
        let output = deployment.cli(arguments).ok();
        let note = "big.1 has not been started yet\n";
        assert_eq!(
            (&*output.stdout, &*output.stderr),
            ("", note),
            "{arguments:?}"
        );
    }
    for arguments in [&["logs", "bog"][..], &["--offline", "logs", "bog"]] {
        let refused = deployment.cli(arguments).exits_with(3);
        assert!(
            refused.stderr.contains("known: big, late, web"),
            "{refused:#?}"
        );
    }
    for (options, service, words) in [
        (&[][..], "big", "first words"),
        (&["--offline"], "late", "other words"),
    ] {
        let following = Trail::begin(&deployment, &[options, &["logs", "-f", service]].concat());
        following.notes("follows when it is");
        deployment.cli(&["start", service]).ok();
        following.says(words);
    }
    assert_eq!(texts(&shown(&deployment, &["big"])), ["first words"]);
    deployment.down();
}

#[test]
fn the_run_before_is_without_the_hook_of_the_present_one_and_may_not_be() {
    let deployment = Deployment::new(
        r#"
services:
  one:
    command: [sh, -c, "echo run; exec sleep 100000"]
    hooks: {before_start: [sh, -c, "echo before; sleep 0.2"]}
"#,
    );
    deployment.up();
    wait_for_text(&deployment, "one", "run");
    for offline in [&[][..], &["--offline"]] {
        let arguments = [offline, &["logs", "one", "--previous"]].concat();
        let none = deployment.cli(&arguments).exits_with(1);
        assert_eq!(none.stdout, "", "{none:#?}");
        let words = "one.1: nothing of a run before the latest start is in its log";
        assert!(none.stderr.contains(words), "{none:#?}");
    }
    deployment.cli(&["restart", "one"]).ok();
    wait_for("both runs", || {
        let log = deployment.cli(&["logs", "one"]).ok().stdout;
        (log.lines().count() == 4).then_some(()).ok_or(log)
    });
    let before = shown(&deployment, &["one", "--previous"]);
    assert_eq!(texts(&before), ["before", "run"]);
    // Of a process that has ended, too.
    deployment.cli(&["stop", "one"]).ok();
    let before = shown(&deployment, &["one", "--previous"]);
    assert_eq!(texts(&before), ["before", "run"]);
    deployment.down();
}

/// A restart by permit comes at once: what the run before said last is its own, and what
/// the hook says that comes before the next one is not.
#[test]
fn last_words_before_a_restart_at_once_belong_to_the_run_before() {
    let script = "if test -e $PWD/again-$0; then echo second; exec sleep 100000; fi; \
                  touch $PWD/again-$0; echo first; echo last words; exit 3";
    let deployment = Deployment::new(&format!(
        r#"
services:
  one: {{command: [sh, -c, "{script}", one], working_dir: "."}}
  two:
    command: [sh, -c, "{script}", two]
    working_dir: "."
    hooks: {{before_start: [echo, before], after_exit: [echo, after]}}
"#
    ));
    deployment.up();
    for service in ["one", "two"] {
        wait_for_text(&deployment, service, "second");
    }
    let before = shown(&deployment, &["one", "--previous"]);
    assert_eq!(texts(&before), ["first", "last words"]);
    let before = shown(&deployment, &["two", "--previous"]);
    // What the hook after it says goes its own way to the log: it may come behind the
    // beginning of the next run, but nothing of that comes before it.
    let before = texts(&before);
    assert_eq!(before[..3], ["before", "first", "last words"]);
    assert!(
        before[3..].iter().all(|text| *text == "after"),
        "{before:?}"
    );
    deployment.down();
}
