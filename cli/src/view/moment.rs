//! A moment as a person writes it.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

/// Reads a moment: RFC 3339, a local date or time of day or both (in UTC with a `Z`), a time ago
/// (`10m`, `1h30m ago`), `now`, `today`, `yesterday`.
///
/// # Errors
/// What can be written, when it is none of these.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    parse_at(text, &crate::human::now()).ok_or_else(|| {
        format!(
            "{text:?} is no moment: write for instance 2026-11-22T23:05:30Z, \"2026-11-22 23:05\", \
             23:05, 10m, \"2h ago\", today or yesterday"
        )
    })
}

fn parse_at(text: &str, now: &Zoned) -> Option<Timestamp> {
    let text = text.trim();
    let zone = now.time_zone().clone();
    match text {
        "now" => return Some(now.timestamp()),
        "today" => return local(now.date().into(), zone),
        "yesterday" => return local(now.date().yesterday().ok()?.into(), zone),
        _ => {}
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    if let Ok(moment) = text.parse::<DateTime>() {
        // Also a date alone, which is its midnight.
        return local(moment, zone);
    }
    if text.contains(':')
        && let Ok(time) = text.parse::<Time>()
    {
        let date: Date = now.date();
        return local(date.to_datetime(time), zone);
    }
    if let Some(time) = text
        .strip_suffix(['Z', 'z'])
        .filter(|text| text.contains(':'))
        && let Ok(time) = time.parse::<Time>()
    {
        let date = now.with_time_zone(TimeZone::UTC).date();
        return local(date.to_datetime(time), TimeZone::UTC);
    }
    let ago = text.strip_suffix("ago").unwrap_or(text).trim();
    if ago.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ago: SignedDuration = match ago.strip_suffix('d') {
        Some(days) => {
            SignedDuration::from_hours(days.parse::<u32>().ok()?.into()).checked_mul(24)?
        }
        None => ago.parse().ok()?,
    };
    if ago.is_negative() {
        return None;
    }
    now.timestamp().checked_sub(ago).ok()
}

fn local(moment: DateTime, zone: TimeZone) -> Option<Timestamp> {
    Some(moment.to_zoned(zone).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_in_all_their_forms() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let now = "2026-11-22T12:00:00Z"
            .parse::<Timestamp>()
            .unwrap()
            .to_zoned(zone);
        for (text, expected) in [
            ("2026-11-22T23:05:30.5Z", "2026-11-22T23:05:30.5Z"),
            ("2026-11-22T23:05:30+01:00", "2026-11-22T22:05:30Z"),
            ("2026-11-22 10:00", "2026-11-22T08:00:00Z"),
            ("2026-11-22T10:00:07", "2026-11-22T08:00:07Z"),
            ("2026-11-21", "2026-11-20T22:00:00Z"),
            ("13:30", "2026-11-22T11:30:00Z"),
            ("11:30Z", "2026-11-22T11:30:00Z"),
            ("2026-11-22 11:30Z", "2026-11-22T11:30:00Z"),
            ("now", "2026-11-22T12:00:00Z"),
            ("today", "2026-11-21T22:00:00Z"),
            ("yesterday", "2026-11-20T22:00:00Z"),
            ("10m", "2026-11-22T11:50:00Z"),
            ("10m ago", "2026-11-22T11:50:00Z"),
            ("1h30m ago", "2026-11-22T10:30:00Z"),
            ("2d", "2026-11-20T12:00:00Z"),
        ] {
            assert_eq!(
                parse_at(text, &now),
                Some(expected.parse().unwrap()),
                "{text}"
            );
        }
        for bad in [
            "",
            "10",
            "soon",
            "-5m",
            "tomorrow never",
            "25:00",
            "2026-13-01",
            "d",
        ] {
            assert_eq!(parse_at(bad, &now), None, "{bad:?}");
        }
    }
}
