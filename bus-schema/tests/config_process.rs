//! What a service says about its process: groups, masks, limits, capabilities, files.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;

use blackhole_bus_schema::config::{Config, ServiceConfig};
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    Capabilities, EnvFile, ProcessSettings, Rlimit, RlimitValue, SpawnSpec,
};

fn service(lines: &str) -> Result<ServiceConfig, String> {
    let lines: Vec<String> = lines.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!("services:\n  web:\n    command: [web]\n{}", lines.concat());
    let config = Config::parse_in(&text, "blackhole.yaml", Path::new("/etc/app"), []);
    let config = config.map_err(|error| error.to_string())?;
    Ok(config.services.values().next().unwrap().clone())
}

fn settings(lines: &str) -> ProcessSettings {
    service(lines).unwrap().settings
}

#[track_caller]
fn wrong(lines: &str, words: &[&str]) {
    let error = service(lines).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in:\n{error}");
    }
    assert!(error.starts_with("blackhole.yaml:"), "{error}");
}

#[test]
fn nothing_said_is_nothing_asked_for() {
    let settings = settings("stdin: null\nrlimits: {}");
    assert!(settings.is_default(), "{settings:?}");
}

#[test]
fn all_that_can_be_said_of_a_process() {
    let lines = "\
groups: [audio, 27]
umask: 0027
nice: -5
rlimits:
  nofile: [1024, 4096]
  core: unlimited
  memlock: 64MiB
  stack: [8388608, unlimited]
no_new_privs: true
standby: true
capabilities: {keep: [CAP_NET_BIND_SERVICE, chown, chown]}
stdin: ./input
env_files: [common.env, {path: \"${config_dir}/local.env\", required: false}]";
    let both = |value| RlimitValue {
        soft: value,
        hard: value,
    };
    let service = service(lines).unwrap();
    let expected = ProcessSettings {
        groups: vec!["audio".into(), "27".into()],
        umask: Some(0o027),
        nice: Some(-5),
        rlimits: BTreeMap::from([
            (
                Rlimit::Nofile,
                RlimitValue {
                    soft: Some(1024),
                    hard: Some(4096),
                },
            ),
            (Rlimit::Core, both(None)),
            (Rlimit::Memlock, both(Some(64 << 20))),
            (
                Rlimit::Stack,
                RlimitValue {
                    soft: Some(8 << 20),
                    hard: None,
                },
            ),
        ]),
        no_new_privs: true,
        standby: true,
        capabilities: Some(Capabilities::Keep(vec![
            "chown".into(),
            "net_bind_service".into(),
        ])),
        stdin: Some("/etc/app/input".into()),
        env_files: vec![
            EnvFile {
                path: "/etc/app/common.env".into(),
                required: true,
            },
            EnvFile {
                path: "/etc/app/local.env".into(),
                required: false,
            },
        ],
        ..ProcessSettings::default()
    };
    assert_eq!(service.settings, expected);
    let spec = service.spawn_spec("web.1".parse().unwrap(), Generation(1), None, 0);
    assert_eq!(spec.settings, expected);
    let bytes = rmp_serde::to_vec_named(&spec).unwrap();
    assert_eq!(rmp_serde::from_slice::<SpawnSpec>(&bytes).unwrap(), spec);
}

#[test]
fn masks_are_octal_however_they_are_written() {
    for text in ["27", "027", "0027", "\"027\"", "0o27"] {
        assert_eq!(
            settings(&format!("umask: {text}")).umask,
            Some(0o27),
            "{text}"
        );
    }
    for text in ["88", "1777", "-1", "[1]", "u=rwx", "1.5"] {
        wrong(
            &format!("umask: {text}"),
            &["umask", "an octal number from 0 to 777"],
        );
    }
}

#[test]
fn capabilities_are_kept_or_dropped() {
    let capabilities = |text: &str| settings(&format!("capabilities: {text}")).capabilities;
    assert_eq!(
        capabilities("{keep: []}"),
        Some(Capabilities::Keep(Vec::new()))
    );
    assert_eq!(
        capabilities("{drop: [sys_admin]}"),
        Some(Capabilities::Drop(vec!["sys_admin".into()]))
    );
    for (text, words) in [
        ("[chown]", &["found a list", "keep or drop"][..]),
        ("{}", &["neither keep nor drop"]),
        ("{drop: []}", &["is empty", "keep: []"]),
        ("{keep: [chown], drop: [kill]}", &["keep stands there too"]),
        (
            "{keep: [net_bind_servce]}",
            &["did you mean net_bind_service?"],
        ),
        ("{keep: [CAP_SYS_ADMN]}", &["did you mean sys_admin?"]),
        (
            "{keep: [everything]}",
            &["no capability", "capabilities(7)"],
        ),
        ("{keeps: [chown]}", &["did you mean keep?"]),
    ] {
        wrong(&format!("capabilities: {text}"), words);
    }
}

#[test]
fn what_is_wrong_is_said_with_what_would_be_right() {
    for (lines, words) in [
        ("groups: audio", &["groups", "a list", "[audio, 27]"][..]),
        ("groups: [a b]", &["groups[0]", "a name or a number"]),
        ("nice: 20", &["nice", "from -20 to 19"]),
        ("nice: low", &["nice", "the text \"low\""]),
        ("standby: 1", &["standby", "true or false"]),
        ("no_new_privs: yes", &["no_new_privs", "true or false"]),
        (
            "rlimits: {nofiles: 5}",
            &["nofiles", "did you mean nofile?"],
        ),
        (
            "rlimits: {nofile: 64MiB}",
            &["rlimits.nofile", "a whole number"],
        ),
        (
            "rlimits: {nofile: [1, 2, 3]}",
            &["a list of 3", "[soft, hard]"],
        ),
        (
            "rlimits: {nofile: [5, 4]}",
            &["above its hard limit", "[soft, hard]"],
        ),
        (
            "rlimits: {nofile: [unlimited, 4]}",
            &["above its hard limit"],
        ),
        (
            "rlimits: {core: -1}",
            &["rlimits.core", "64MiB", "unlimited"],
        ),
        (
            "rlimits: {nproc: [a, 4]}",
            &["rlimits.nproc[0]", "a whole number"],
        ),
        (
            "memlock: 5",
            &["unknown key \"memlock\"", "under services.web.rlimits"],
        ),
        (
            "rlimits: {nofile: 5}\nresources: {open_files: 64}",
            &["rlimits.nofile", "resources.open_files says the same"],
        ),
        ("stdin: [a]", &["stdin", "found a list"]),
        (
            "env_files: common.env",
            &["env_files", "a list", "write env_files"],
        ),
        (
            "env_files: [{required: false}]",
            &["env_files[0]", "has no path"],
        ),
        ("env_files: [5]", &["env_files[0]", "a path"]),
        (
            "env_files: [{path: a, require: false}]",
            &["did you mean required?"],
        ),
    ] {
        wrong(lines, words);
    }
}
