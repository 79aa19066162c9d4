//! Numbers, times and lists as a person reads them. All pure but what looks at the clock.

use std::sync::OnceLock;
use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// A time in its two largest units: `350 ms`, `1.2 s`, `3m 05s`, `2h 10m`, `4d 3h`.
pub fn duration(time: Duration) -> String {
    let millis = time.as_millis();
    let seconds = time.as_secs();
    if millis < 1000 {
        return format!("{millis} ms");
    }
    if seconds < 60 {
        let tenths = millis / 100;
        return if tenths.is_multiple_of(10) && tenths >= 100 {
            format!("{} s", tenths / 10)
        } else {
            format!("{}.{} s", tenths / 10, tenths % 10)
        };
    }
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if hours == 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h {:02}m", minutes % 60)
    } else {
        format!("{days}d {}h", hours % 24)
    }
}

/// A time without fractions, for columns that change each second: `12s`, `3m05s`.
pub fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if minutes == 0 {
        format!("{seconds}s")
    } else if hours == 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else {
        format!("{days}d{:02}h", hours % 24)
    }
}

/// Bytes in binary units: `512 B`, `1.5 KiB`, `200 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// Percent of one core: `0.3%`, `12%`, `250%`.
pub fn percent(value: f64) -> String {
    if value < 9.95 {
        format!("{value:.1}%")
    } else {
        format!("{value:.0}%")
    }
}

/// At most `most` names, then how many more there are.
pub fn list<S: AsRef<str>>(names: &[S], most: usize) -> String {
    let shown: Vec<&str> = names.iter().take(most).map(AsRef::as_ref).collect();
    let rest = names.len().saturating_sub(most);
    match rest {
        0 => shown.join(", "),
        _ => format!("{} and {rest} more", shown.join(", ")),
    }
}

/// `1 service`, `2 services`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// Local time of day with milliseconds, from Unix nanoseconds: `23:05:30.123`.
pub fn clock(unix_ns: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(time) => Clock::local().time(time),
        Err(_) => "??:??:??.???".to_owned(),
    }
}

/// Now, where this host or `TZ` says.
///
/// Without `TZ` the zone is what stands in `/etc/localtime` (tzset(3)), read as it is: to
/// find out what that zone is called all zones of the host would be looked through.
pub fn now() -> Zoned {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    let zone = ZONE.get_or_init(|| {
        let named = std::env::var_os("TZ").is_some();
        let rules = (!named)
            .then(|| std::fs::read("/etc/localtime"))
            .and_then(Result::ok);
        let read = rules.and_then(|rules| TimeZone::tzif("Local", &rules).ok());
        read.unwrap_or_else(TimeZone::system)
    });
    Timestamp::now().to_zoned(zone.clone())
}

/// The clock and the calendar that a person reads times by. Moments on the command line
/// are read by the same one, see [`crate::view::moment`].
#[derive(Debug, Clone)]
pub struct Clock {
    zone: TimeZone,
    today: Date,
}

impl Clock {
    /// That of this host, or of `TZ`.
    pub fn local() -> Self {
        Self::of(now())
    }

    /// That of a moment.
    pub fn of(now: Zoned) -> Self {
        Self {
            zone: now.time_zone().clone(),
            today: now.date(),
        }
    }

    /// Time of day with milliseconds.
    pub fn time(&self, moment: Timestamp) -> String {
        time(self.zone.to_datetime(moment))
    }

    /// The same, with the date before it where that is not today's.
    pub fn moment(&self, moment: Timestamp) -> String {
        let local = self.zone.to_datetime(moment);
        match local.date() == self.today {
            true => time(local),
            false => format!("{} {}", local.date(), time(local)),
        }
    }
}

fn time(local: DateTime) -> String {
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        local.hour(),
        local.minute(),
        local.second(),
        local.millisecond()
    )
}

/// RFC 3339 in UTC with microseconds, from Unix nanoseconds.
pub fn timestamp(unix_ns: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => "????-??-??T??:??:??.??????Z".to_owned(),
    }
}

/// Now, as Unix time in nanoseconds.
pub fn now_ns() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

/// Text from a daemon or a service, safe to show: control characters become `\u{…}` or spaces.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' | '\r' => out.push(' '),
            control if control.is_control() => out.extend(control.escape_default()),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (millis, text) in [
            (0, "0 ms"),
            (350, "350 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (1234, "1.2 s"),
            (10_000, "10 s"),
            (12_500, "12.5 s"),
            (59_990, "59.9 s"),
            (185_000, "3m 05s"),
            (7_800_000, "2h 10m"),
            (356_400_000, "4d 3h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(uptime(Duration::from_secs(3)), "3s");
        assert_eq!(uptime(Duration::from_secs(185)), "3m05s");
        assert_eq!(uptime(Duration::from_secs(90_061)), "1d01h");
    }

    #[test]
    fn sizes() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (209_715_200, "200 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(percent(0.25), "0.2%");
        assert_eq!(percent(250.4), "250%");
    }

    #[test]
    fn lists_are_cut() {
        assert_eq!(list(&["a", "b", "c"], 8), "a, b, c");
        assert_eq!(list(&["a", "b", "c"], 2), "a, b and 1 more");
    }

    #[test]
    fn programs_get_utc_and_people_their_own_time() {
        let ns = 1_795_388_730_123_456_789;
        assert_eq!(timestamp(ns), "2026-11-22T23:05:30.123456Z");
        assert!(timestamp(u64::MAX).ends_with('Z'));
        let moment = Timestamp::from_nanosecond(ns.into()).unwrap();
        for (offset, time, day) in [
            (0, "23:05:30.123", "2026-11-22"),
            (-5, "18:05:30.123", "2026-11-22"),
            (2, "01:05:30.123", "2026-11-23"),
        ] {
            let zone = TimeZone::fixed(jiff::tz::offset(offset));
            let clock = Clock::of(moment.to_zoned(zone.clone()));
            assert_eq!(clock.time(moment), time);
            assert_eq!(clock.moment(moment), time);
            let tomorrow = moment.to_zoned(zone).tomorrow().unwrap();
            assert_eq!(Clock::of(tomorrow).moment(moment), format!("{day} {time}"));
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb c");
    }
}
