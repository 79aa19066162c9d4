//! `kill -9` and `kill -HUP`, as kill(1) takes them, in the words of the definition.

use std::ffi::OsString;

/// Flags that stand before a command and are followed by their value.
const WITH_VALUE: [&str; 7] = [
    "-c",
    "--config",
    "--run-dir",
    "--state-dir",
    "-o",
    "--output",
    "--timeout",
];

/// The arguments of a program (its name is the first) with `kill -9` as `kill --signal=9`, and
/// `signal -9` as `signal 9`. A signal's name is told from flags by its capital letters.
pub fn plain(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = arguments.into_iter().collect();
    let mut at = 1;
    let command = loop {
        match all.get(at).and_then(|word| word.to_str()) {
            Some(word) if WITH_VALUE.contains(&word) => at += 2,
            Some(word) if word.starts_with('-') => at += 1,
            Some(word) => break word,
            None => return all,
        }
    };
    let before = match command {
        "kill" => "--signal=",
        "signal" => "",
        _ => return all,
    };
    for word in all.iter_mut().skip(at + 1) {
        match word.to_str() {
            Some("--") => break,
            Some(text) => {
                if let Some(signal) = of_signal(text) {
                    *word = format!("{before}{signal}").into();
                }
            }
            None => {}
        }
    }
    all
}

/// `9` of `-9`, `HUP` of `-HUP`.
fn of_signal(word: &str) -> Option<&str> {
    let signal = word.strip_prefix('-')?;
    let number = signal.bytes().all(|byte| byte.is_ascii_digit());
    let name = signal.starts_with(|first: char| first.is_ascii_uppercase())
        && signal.bytes().all(|byte| {
            byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"+-".contains(&byte)
        });
    (!signal.is_empty() && (number || name)).then_some(signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Cmd};
    use clap::Parser;

    fn parse(words: &[&str]) -> Result<Cmd, clap::Error> {
        let words = ["blackhole"].iter().chain(words).map(OsString::from);
        Cli::try_parse_from(plain(words)).map(|cli| cli.command)
    }

    #[test]
    fn signals_as_kill_takes_them() {
        for (words, signal) in [
            (&["kill", "web"][..], 9),
            (&["kill", "-9", "web"], 9),
            (&["kill", "-HUP", "web"], 1),
            (&["kill", "web", "-SIGHUP"], 1),
            (&["-c", "kill", "--offline", "kill", "-15", "web"], 15),
            (&["kill", "-s", "TERM", "-o", "json", "web"], 15),
        ] {
            match parse(words).unwrap() {
                Cmd::Kill(args) => {
                    assert_eq!(
                        (args.signal, args.names.as_slice()),
                        (signal, &["web".to_owned()][..])
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(
            matches!(parse(&["signal", "-USR1", "web"]), Ok(Cmd::Signal(args)) if args.signal == 10)
        );
    }

    #[test]
    fn what_is_none_is_refused_and_what_is_meant_for_others_stays() {
        for bad in [&["kill", "-99", "web"][..], &["kill", "-NOPE", "web"]] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("is not a signal"), "{error}");
        }
        match parse(&["call", "kill", "kill", "-9"]).unwrap() {
            Cmd::Call(call) => assert_eq!(call.payload.as_deref(), Some("-9")),
            other => panic!("{other:?}"),
        }
        assert!(parse(&["-9"]).is_err());
    }
}
