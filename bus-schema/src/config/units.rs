//! Durations, sizes and percentages with their units.

use std::time::Duration;

/// Longest duration that can be written: a hundred years say that a unit was mistaken.
const MAX_DURATION: Duration = Duration::from_secs(366 * 86_400);

/// Reads `500ms`, `2s`, `1.5m`, `1h30m`, `1d`; `Err` says what is expected.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a duration such as 500ms, 2s, 1m30s or 1h";
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(EXPECTED);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = number(rest).ok_or(EXPECTED)?;
        let after = after.trim_start();
        let end = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(EXPECTED),
        };
        total = Duration::try_from_secs_f64(number * seconds)
            .ok()
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= MAX_DURATION)
            .ok_or("a duration of at most 366d")?;
        rest = next.trim_start();
    }
    Ok(total)
}

/// Reads `512KiB`, `16MiB`, `10MB`, `1.5GiB`; `Err` says what is expected.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "a size such as 512KiB, 16MiB, 10MB or 1GiB";
    let (number, unit) = number(text.trim()).ok_or(EXPECTED)?;
    let factor: u64 = match unit.trim() {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(EXPECTED),
    };
    let bytes = number * factor as f64;
    // 2^53: below it a float is exact to the byte.
    if bytes > 9e15 {
        return Err("a size below 8 PiB");
    }
    Ok(bytes.round() as u64)
}

/// Reads `10%`; `Err` says what is expected.
pub(super) fn percent(text: &str) -> Result<u8, &'static str> {
    const EXPECTED: &str = "a percentage from 0% to 100%";
    let number = text.trim().strip_suffix('%').ok_or(EXPECTED)?.trim();
    number
        .parse::<u8>()
        .ok()
        .filter(|number| *number <= 100)
        .ok_or(EXPECTED)
}

/// A decimal number at the start, without sign or exponent, and what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) || digits.len() > 20 {
        return None;
    }
    Some((digits.parse().ok()?, rest))
}

/// A duration as a person writes it, in the largest unit that leaves it whole.
pub(super) fn show(duration: Duration) -> String {
    const UNITS: [(u128, &str); 5] = [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
    ];
    let micros = duration.as_micros();
    if micros == 0 {
        return "0s".to_owned();
    }
    UNITS
        .iter()
        .find(|(unit, _)| micros.is_multiple_of(*unit))
        .map_or_else(
            || format!("{micros}us"),
            |(unit, name)| format!("{}{name}", micros / unit),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("1.5s", 1_500),
            ("1m", 60_000),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("2 s", 2_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            " ",
            "10",
            "s",
            "-1s",
            "+1s",
            "1e3s",
            "1.2.3s",
            "10 seconds",
            "1s2",
            "1S",
            "∞s",
            "1s,",
            "99999999999999999999999s",
            "9999999d",
            ".5s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1B", 1),
            ("10MB", 10_000_000),
            ("16MiB", 16 << 20),
            ("1.5KiB", 1_536),
            ("1 GiB", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "10",
            "MiB",
            "10M",
            "-1MB",
            "1e9B",
            "99999999999GiB",
            "10 megabytes",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!(percent("10%"), Ok(10));
        assert_eq!(percent("0 %"), Ok(0));
        for text in ["10", "101%", "-1%", "%", "1.5%"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shown_durations_read_back() {
        for millis in [
            0, 1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000, 86_400_000,
        ] {
            let value = Duration::from_millis(millis);
            assert_eq!(duration(&show(value)), Ok(value));
        }
    }
}
