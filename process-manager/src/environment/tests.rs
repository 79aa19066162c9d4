use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::path::Path;

use blackhole_bus_schema::process::{EnvFile, SpawnStep};
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Fake {
    variables: BTreeMap<&'static str, &'static str>,
    files: BTreeMap<&'static str, &'static [u8]>,
}

impl Sources for Fake {
    fn variable(&self, name: &str) -> Option<OsString> {
        self.variables.get(name).map(OsString::from)
    }

    fn file(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        match path.to_str().and_then(|path| self.files.get(path)) {
            Some(content) => Ok(content.to_vec()),
            None => Err(std::io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }
}

fn fake() -> Fake {
    Fake {
        variables: BTreeMap::from([("REGION", "north"), ("PATH", "/opt/bin:/bin")]),
        files: BTreeMap::from([
            ("/secret", b"hunter2\n" as &[u8]),
            ("/dos", b"hunter3\r\n"),
            ("/nul", b"a\0b"),
            ("/binary", b"\xff\xfe"),
        ]),
    }
}

fn make(env: &[(&str, &str)]) -> Result<Environment, EnvironmentError> {
    let env = env
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let blackhole = [
        ("BLACKHOLE_SERVICE", "web".to_owned()),
        ("BLACKHOLE_INSTANCE", "web.2".to_owned()),
    ];
    let recipe = Recipe {
        env: &env,
        files: &[],
        blackhole: &blackhole,
    };
    build(&recipe, &fake())
}

fn value(environment: &Environment, key: &str) -> String {
    environment.get(key).unwrap().to_owned()
}

#[test]
fn the_base_is_small_and_blackhole_comes_last() {
    let made = make(&[("LOG", "info"), ("BLACKHOLE_SERVICE", "other")]).unwrap();
    let all: Vec<String> = made
        .iter()
        .map(|(key, value)| format!("{key}={}", value))
        .collect();
    assert_eq!(
        all,
        [
            "BLACKHOLE_INSTANCE=web.2",
            "BLACKHOLE_SERVICE=web",
            "LANG=C.UTF-8",
            "LOG=info",
            "PATH=/opt/bin:/bin",
        ]
    );
    assert_eq!(made.into_map().len(), 5);
}

#[test]
fn a_configured_value_outranks_the_base() {
    let made = make(&[("PATH", "/only"), ("HOME", "/tmp")]).unwrap();
    assert_eq!(value(&made, "PATH"), "/only");
    assert_eq!(value(&made, "HOME"), "/tmp");
}

#[test]
fn files_are_over_the_base_and_below_what_is_configured() {
    let mut sources = fake();
    sources
        .files
        .insert("/one.env", b"A=1\nLANG=C\nB='${env:REGION}'\n");
    sources.files.insert("/two.env", b"A=2 # again\n");
    sources
        .files
        .insert("/bad.env", b"# so far so good\nhunter2\n");
    let make = |files: &[(&str, bool)], env: &[(&str, &str)]| {
        let files: Vec<EnvFile> = files
            .iter()
            .map(|(path, required)| EnvFile {
                path: (*path).to_owned(),
                required: *required,
            })
            .collect();
        let env = env
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let recipe = Recipe {
            env: &env.collect(),
            files: &files,
            blackhole: &[("BLACKHOLE_SERVICE", "web".to_owned())],
        };
        build(&recipe, &sources)
    };
    let made = make(
        &[("/one.env", true), ("/two.env", true), ("/none", false)],
        &[("C", "3")],
    );
    let made = made.unwrap();
    assert_eq!(value(&made, "A"), "2");
    assert_eq!(value(&made, "B"), "${env:REGION}");
    assert_eq!(
        (value(&made, "C"), value(&made, "LANG")),
        ("3".into(), "C".into())
    );
    let made = make(&[("/one.env", true)], &[("A", "own")]).unwrap();
    assert_eq!(value(&made, "A"), "own");

    let failure = make(&[("/none", true)], &[]).unwrap_err().into_failure();
    assert_eq!(
        (failure.operation.as_str(), failure.errno),
        ("read /none", libc::ENOENT)
    );
    assert!(failure.hint.contains("required: false"), "{failure}");
    let failure = make(&[("/bad.env", false)], &[])
        .unwrap_err()
        .into_failure();
    assert_eq!(failure.operation, "/bad.env:2: there is no =");
    assert!(!failure.to_string().contains("hunter2"));
}

#[test]
fn references_are_resolved_in_place() {
    let made = make(&[
        ("A", "x-${env:REGION}-y"),
        ("B", "postgres://u:${file:/secret}@h/${env:REGION}"),
        ("C", "$${env:REGION} $HOME 5$ $"),
        ("D", "${file:/dos}"),
    ])
    .unwrap();
    assert_eq!(value(&made, "A"), "x-north-y");
    assert_eq!(value(&made, "B"), "postgres://u:hunter2@h/north");
    assert_eq!(value(&made, "C"), "${env:REGION} $HOME 5$ $");
    assert_eq!(value(&made, "D"), "hunter3");
}

#[test]
fn a_value_is_never_resolved_twice() {
    let mut sources = fake();
    sources.variables.insert("TRICK", "${file:/secret}");
    assert_eq!(
        resolve("${env:TRICK}", &sources).unwrap(),
        "${file:/secret}"
    );
}

#[test]
fn errors_name_key_and_reference() {
    let failure = |env: &[(&str, &str)]| make(env).unwrap_err().into_failure();
    let missing = failure(&[("DB", "${file:/missing}")]);
    assert_eq!(missing.step, SpawnStep::PrepareEnvironment);
    assert_eq!(
        missing.operation,
        "environment variable DB: ${file:/missing}"
    );
    assert_eq!(missing.errno, libc::ENOENT);
    assert_eq!(missing.hint, "create the file");
    let unset = failure(&[("R", "${env:NOPE}")]);
    assert!(
        unset.operation.contains("R: ${env:NOPE}"),
        "{}",
        unset.operation
    );
    assert!(failure(&[("R", "${env:NOPE")]).hint.contains("closing"));
    assert!(
        failure(&[("R", "${other}")])
            .hint
            .contains("unknown reference")
    );
    assert!(
        failure(&[("R", "${file:secret}")])
            .operation
            .contains("absolute")
    );
    assert!(failure(&[("R", "${file:/nul}")]).operation.contains("NUL"));
    assert!(
        failure(&[("R", "${file:/binary}")])
            .operation
            .contains("UTF-8")
    );
    assert!(failure(&[("a=b", "x")]).operation.contains("a=b"));
    assert!(failure(&[("", "x")]).operation.contains("empty"));
}

#[test]
fn no_value_shows_in_debug_or_in_an_error() {
    let made = make(&[("DB", "${file:/secret}")]).unwrap();
    assert!(!format!("{made:?}").contains("hunter2"));
    assert!(format!("{made:?}").contains("DB"));
    let error = make(&[("A", "${file:/secret}${file:/nul}")]).unwrap_err();
    let chain = format!("{error} {} {error:?}", error.source().unwrap());
    assert!(!chain.contains("hunter2"), "{chain}");
}

#[test]
fn only_regular_files_of_a_sane_size_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    std::fs::write(&small, "x").unwrap();
    assert_eq!(read_secret_file(&small).unwrap(), b"x");
    let large = directory.path().join("large");
    std::fs::write(&large, vec![b'x'; MAX_FILE_BYTES as usize + 1]).unwrap();
    assert_eq!(
        read_secret_file(&large).unwrap_err().kind(),
        std::io::ErrorKind::FileTooLarge
    );
    assert!(read_secret_file(directory.path()).is_err());
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o600),
        0,
    )
    .unwrap();
    // Would hang for ever if it were opened as it stands.
    assert_eq!(
        read_secret_file(&fifo).unwrap_err().kind(),
        std::io::ErrorKind::InvalidInput
    );
}

proptest! {
    #[test]
    fn text_without_a_dollar_is_left_alone(text in "[^$\0]{0,200}") {
        prop_assert_eq!(resolve(&text, &Fake::default()).unwrap(), text);
    }

    #[test]
    fn any_text_gives_a_value_or_an_error(text in "\\PC{0,60}|(\\$\\{?(env|file)?:?[a-z/}$]{0,6}){0,8}") {
        let _ = resolve(&text, &fake());
    }
}
