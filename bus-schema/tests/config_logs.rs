//! `logs:` of a service.

#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::process::{LogFormat, LogSpec};

fn logs(value: &str) -> Result<LogSpec, String> {
    let text = format!("services:\n  web:\n    command: [web]\n    logs: {value}\n");
    let config = Config::parse(&text, "blackhole.yaml").map_err(|error| error.to_string())?;
    Ok(config.services.values().next().unwrap().logs.clone())
}

#[test]
fn all_that_can_be_said_of_a_log() {
    let said = "{max_size: 1MiB, max_files: 7, max_age: 7d, max_total_size: 1GiB, compress: false, format: json}";
    assert_eq!(
        logs(said).unwrap(),
        LogSpec {
            max_bytes: 1 << 20,
            max_files: 7,
            max_age_ms: Some(7 * 24 * 3_600_000),
            max_total_bytes: Some(1 << 30),
            compress: false,
            format: LogFormat::Json,
        }
    );
    let usual = logs("{}").unwrap();
    assert_eq!(usual, LogSpec::default());
    assert!(usual.compress && usual.max_age_ms.is_none() && usual.max_total_bytes.is_none());
    assert_eq!(logs("{max_files: 0}").unwrap().max_files, 0);
}

#[test]
fn what_is_wrong_is_said_with_what_would_be_right() {
    for (value, words) in [
        (
            "{max_files: 1001}",
            &["max_files", "0 to 1000", "beside the current one"][..],
        ),
        ("{max_files: -1}", &["max_files", "rotated files"]),
        (
            "{max_size: 10MiB, max_total_size: 9MiB}",
            &["max_total_size", "max_size", "raise it"],
        ),
        ("{max_total_size: 10MiB}", &["max_total_size", "16777216"]),
        ("{max_age: 30}", &["max_age", "no unit"]),
        ("{max_age: 0s}", &["max_age", "from 1s"]),
        ("{compress: gzip}", &["compress", "true or false"]),
        ("{format: jsn}", &["format", "did you mean json"]),
        ("{max_fiels: 3}", &["max_fiels", "max_files"]),
    ] {
        let error = logs(value).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{value}: {error}");
        }
    }
}
