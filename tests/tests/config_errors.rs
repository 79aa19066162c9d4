//! A wrong configuration gives one clear error with line and column and exit
//! code 2, and starts nothing.

#![allow(clippy::panic)]

use std::fs;

use blackhole_tests::{Deployment, Output};

struct Case {
    what: &'static str,
    yaml: String,
    /// Line and column of the mistake.
    place: &'static str,
    /// What the message has to name.
    words: &'static [&'static str],
}

fn case(
    what: &'static str,
    place: &'static str,
    words: &'static [&'static str],
    yaml: impl Into<String>,
) -> Case {
    Case {
        what,
        yaml: yaml.into(),
        place,
        words,
    }
}

fn cases() -> Vec<Case> {
    vec![
        case(
            "an unknown key of a service",
            "4:5",
            &["comand", "command"],
            "services:\n  web:\n    command: [true]\n    comand: [true]\n",
        ),
        case(
            "an unknown key of the orchestrator",
            "3:5",
            &["max_process", "max_processes"],
            "runtime:\n  orchestrator:\n    max_process: 50\n",
        ),
        case(
            "a duration without a unit",
            "4:19",
            &["10", "s"],
            "services:\n  web:\n    command: [true]\n    stop: {grace: 10}\n",
        ),
        case(
            "a duration that is none",
            "3:35",
            &["soon"],
            "runtime:\n  orchestrator:\n    restart_policy: {max_backoff: soon}\n",
        ),
        case(
            "a cycle",
            "2:37",
            &["cycle", "a → b → c → a"],
            "services:\n  a: {command: [true], depends_on: {b: ready}}\n  \
             b: {command: [true], depends_on: {c: ready}}\n  c: {command: [true], depends_on: {a: ready}}\n",
        ),
        case(
            "a dependency on nobody",
            "2:39",
            &["nobody"],
            "services:\n  web: {command: [true], depends_on: {nobody: ready}}\n",
        ),
        case(
            "a service without a command",
            "2:3",
            &["web", "command"],
            "services:\n  web: {type: storage}\n",
        ),
        case(
            "two services of one name",
            "3:3",
            &["web", "twice"],
            "services:\n  web: {command: [true]}\n  web: {command: [false]}\n",
        ),
        case(
            "a name that is none",
            "2:3",
            &["Web"],
            "services:\n  Web: {command: [true]}\n",
        ),
        case("text that is no YAML", "1:11", &[], "services: [\n"),
        case("ten megabytes of garbage", "", &[], garbage()),
        case("a YAML bomb", "", &["too large"], bomb()),
    ]
}

/// Bytes that look like nothing, the same in each run.
fn garbage() -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = String::with_capacity(10 << 20);
    while text.len() < 10 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(b' ' + (state % 95) as u8));
        if state.is_multiple_of(61) {
            text.push('\n');
        }
    }
    text
}

/// A billion values out of a few hundred bytes.
fn bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let above = format!("*a{}", level - 1);
        let list = [above.as_str(); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    text
}

/// One error: the word stands once, with the file and the place behind it.
#[track_caller]
fn assert_clear(case: &Case, deployment: &Deployment, command: &str, output: &Output) {
    let what = case.what;
    let context = || format!("{what}, {command}: {output:#?}");
    assert_eq!(output.code, Some(2), "{}", context());
    assert_eq!(output.stdout, "", "{}", context());
    assert!(output.stderr.len() < 2000, "{}", context());
    let path = deployment.config().display().to_string();
    let rest = output
        .stderr
        .split_once(&format!("{path}:"))
        .unwrap_or_else(|| panic!("no {path}:LINE:COLUMN in {}", context()))
        .1;
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let (line, column) = (numbers.next(), numbers.next());
    assert!(
        matches!((line, column), (Some(Ok(1..)), Some(Ok(1..)))),
        "{}",
        context()
    );
    assert!(
        rest.starts_with(case.place),
        "{rest:?} does not begin with {}: {}",
        case.place,
        context()
    );
    assert_eq!(
        output.stderr.matches(&format!("{path}:")).count(),
        1,
        "{}",
        context()
    );
    for word in case.words {
        assert!(output.stderr.contains(word), "no {word:?} in {}", context());
    }
}

#[test]
fn each_mistake_gives_one_clear_error_and_starts_nothing() {
    for case in cases() {
        let deployment = Deployment::new(&case.yaml);
        for command in [&["config", "validate"][..], &["up"], &["up", "-d"]] {
            let output = deployment.cli(command);
            assert_clear(&case, &deployment, &command.join(" "), &output);
        }
        assert_eq!(deployment.processes(), [], "{}", case.what);
        for directory in ["run", "state"] {
            let left: Vec<_> = fs::read_dir(deployment.path().join(directory))
                .expect("the directory")
                .flatten()
                .map(|entry| entry.path())
                .collect();
            assert!(left.is_empty(), "{} left {left:?}", case.what);
        }
    }
}

/// Each daemon started alone says the same and ends with the same code.
#[test]
fn daemons_refuse_a_wrong_configuration_too() {
    let deployment = Deployment::new("services: {web: {command: [true], replica: 2}}\n");
    for component in blackhole_tests::deployment::DAEMONS {
        let program = deployment.binaries().join(format!("blackhole-{component}"));
        let mut command = deployment.command(&program);
        command.arg("-c").arg(deployment.config());
        let output = deployment.run(command, component).exits_with(2);
        assert!(
            output.stderr.contains("replica") && output.stderr.contains(":1:"),
            "{output:#?}"
        );
        assert!(
            output.stderr.contains("replicas"),
            "{component} names no known key: {output:#?}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let deployment = Deployment::new("");
    fs::remove_file(deployment.config()).expect("the file goes");
    let output = deployment.cli(&["up"]).exits_with(2);
    assert!(output.stderr.contains("blackhole.yaml"), "{output:#?}");
    assert_eq!(deployment.processes(), []);
}
