//! Every command of README.md is run: the blocks marked `sh`, in their order,
//! in one shell, in a directory that looks like the checkout after
//! `cargo build --release`.
//!
//! Four things are not taken literally:
//!
//! | in the README | here |
//! |---|---|
//! | `target/release` | a link to the directory of the programs under test |
//! | `cargo build --release` | `cargo build --workspace --bins`, which is through already |
//! | `cargo nextest run` | `cargo nextest list`: a run inside a run would not end |
//! | `up` without `-d`, which stays in its terminal | put into the background; the next block waits until all services are ready |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;

use blackhole_tests::binaries::{self, repository};
use blackhole_tests::{Deployment, Ports, is_root};

/// One block of commands and the headings it stands under.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    heading: String,
    commands: String,
}

/// The blocks marked `sh`.
fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut heading, mut open) = (Vec::new(), String::new(), None::<(bool, String)>);
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(mark)) => open = Some((mark == "sh", String::new())),
            (Some(_), Some(_)) => {
                if let Some((true, commands)) = open.take() {
                    blocks.push(Block {
                        heading: heading.clone(),
                        commands,
                    });
                }
            }
            (Some((_, commands)), None) => {
                commands.push_str(line);
                commands.push('\n');
            }
            (None, None) if line.starts_with('#') => {
                heading = line.trim_start_matches(['#', ' ']).to_owned();
            }
            (None, None) => {}
        }
    }
    blocks
}

/// The commands as they are run here.
fn adapted(block: &Block) -> String {
    let root = repository().display().to_string();
    let mut script = String::new();
    for line in block.commands.lines() {
        let line = line
            .replace(
                "cargo build --release",
                &format!("(cd '{root}' && cargo build --quiet --workspace --bins)"),
            )
            .replace(
                "cargo nextest run",
                &format!("(cd '{root}' && cargo nextest list >/dev/null 2>&1)"),
            );
        let stays = line.contains("blackhole up ") && !line.contains(" -d");
        match stays {
            true => script.push_str(&format!("{{ {line}; }} >up.out 2>&1 &\nup=$!\n")),
            false => script.push_str(&format!("{line}\n")),
        }
    }
    script
}

/// What has to hold after the blocks of a heading, beyond that each command
/// ran: the README promises it.
const PROMISES: [(&str, &[&str]); 7] = [
    (
        "Look around",
        &[
            "Hello, world! The migration wrote these words.",
            "greeter.2",
        ],
    ),
    ("Kill a service", &["Hello, again!", "SIGKILL"]),
    ("Kill the daemons", &["Hello, still!"]),
    (
        "Fail again and again",
        &["exit code 6", "exit code 1", "circuit"],
    ),
    ("Run into limits", &["hog.1", "greedy.1"]),
    ("Read a log", &["greeter.1"]),
    (
        "A shop",
        &["Green tea, 100 g", "\"total_cents\":4860", "\"quantity\""],
    ),
];

#[test]
fn blocks_are_found_with_their_headings() {
    let text = "# A\n```sh\none\ntwo\n```\n## B c\n```yaml\nx: 1\n```\n```sh\nthree\n```\n";
    let found: Vec<(String, String)> = blocks(text)
        .into_iter()
        .map(|block| (block.heading, block.commands))
        .collect();
    let expected = [("A", "one\ntwo\n"), ("B c", "three\n")];
    assert_eq!(
        found,
        expected.map(|(heading, commands)| (heading.to_owned(), commands.to_owned()))
    );
}

#[test]
fn the_two_commands_come_first() {
    let text = fs::read_to_string(repository().join("README.md")).expect("the README");
    let all = blocks(&text);
    assert!(
        all[0]
            .commands
            .starts_with("cargo build --release && target/release/blackhole up -c examples/")
    );
    assert_eq!(all[1].commands, "cargo nextest run\n");
    let before = text.split_once("```sh").expect("a block").0;
    assert!(
        before.lines().filter(|line| !line.is_empty()).count() <= 8,
        "{before}"
    );
}

/// Files and folders that the README links to are there.
#[test]
fn links_lead_somewhere() {
    let text = fs::read_to_string(repository().join("README.md")).expect("the README");
    let links = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link);
    let local: Vec<&str> = links.filter(|link| !link.contains("://")).collect();
    assert!(local.len() > 10, "{local:?}");
    for link in local {
        assert!(
            repository().join(link).exists(),
            "README.md links to {link}, which is not there"
        );
    }
}

mod fixed_ports {
    use super::*;

    #[test]
    fn every_command_runs_and_does_what_is_promised() {
        let text = fs::read_to_string(repository().join("README.md")).expect("the README");
        let _ports = Ports::hold();
        let deployment = Deployment::new("");
        let checkout = deployment.path().join("checkout");
        fs::create_dir_all(checkout.join("target")).expect("a directory");
        symlink(repository().join("examples"), checkout.join("examples")).expect("a link");
        symlink(binaries::directory(), checkout.join("target/release")).expect("a link");

        // `-e`: a command that fails where the README does not say so ends the test.
        let mut script = "set -eu\n".to_owned();
        let mut started = false;
        for (number, block) in blocks(&text).iter().enumerate() {
            script.push_str(&format!("echo '<<< {number} {}'\n", block.heading));
            if started && block.heading == "Look around" {
                script.push_str(WAIT_FOR_READY);
            }
            started = true;
            script.push_str(&adapted(block));
            if block.commands.trim() == "blackhole down" {
                script.push_str("wait $up\n");
            }
        }
        fs::write(checkout.join("tour.sh"), &script).expect("the script is written");

        let mut shell = deployment.command("bash".as_ref());
        // The reader's own environment: what cargo builds must not differ by it.
        let own = std::env::vars_os().filter(|(name, _)| {
            !["BLACKHOLE_", "NEXTEST"]
                .iter()
                .any(|one| name.to_string_lossy().starts_with(one))
        });
        shell.arg("tour.sh").current_dir(&checkout).envs(own);
        let output = deployment.run_at_most(shell, "the tour", std::time::Duration::from_secs(400));
        let up = fs::read_to_string(checkout.join("up.out")).unwrap_or_default();
        let context = format!(
            "{}\n--- stderr\n{}\n--- up\n{up}",
            output.stdout, output.stderr
        );
        assert_eq!(output.code, Some(0), "{context}");
        for (heading, words) in PROMISES {
            let said = said(&output.stdout, heading);
            for word in words {
                assert!(
                    said.contains(word),
                    "under {heading:?} nothing says {word:?}:\n{context}"
                );
            }
        }
        if is_root() {
            let said = said(&output.stdout, "Run into limits");
            assert!(said.contains("out of memory"), "{context}");
        }
        let pids = pids(&said(&output.stdout, "Kill the daemons"));
        assert!(pids.len() >= 6, "{pids:?}");
        assert!(
            pids.values().all(|seen| seen.len() == 1),
            "not every pid stayed: {pids:?}\n{context}"
        );
        deployment.assert_nothing_left();
    }
}

/// The process ids of each running instance in all tables of a text.
fn pids(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [instance, "RUNNING", _, pid, ..] = fields.as_slice() {
            found
                .entry((*instance).to_owned())
                .or_default()
                .insert((*pid).to_owned());
        }
    }
    found
}

/// The reader of the README sees in the first terminal when all is ready.
const WAIT_FOR_READY: &str = r#"
until target/release/blackhole status 2>/dev/null | awk '
    $1 == "web.1" || $1 == "worker.1" || $1 == "ticker.1" {ready += ($3 == "ready")}
    END {exit ready != 3}'; do sleep 0.2; done
"#;

/// Everything that was printed under a heading.
fn said(output: &str, heading: &str) -> String {
    let parts = output.split("<<< ").filter(|part| {
        part.lines()
            .next()
            .and_then(|line| line.split_once(' '))
            .is_some_and(|(_, one)| one == heading)
    });
    parts.collect()
}
