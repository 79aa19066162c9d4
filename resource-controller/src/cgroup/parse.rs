//! Parsers of the kernel's small files. Pure; what cannot be read is `None`,
//! since a file of another kernel version may lack a line.

/// A single number. `max` (v2) and values that v1 uses for "no limit"
/// (`-1`, or the largest multiple of the page size below 2⁶³) give `Unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// A number.
    Limited(u64),
    /// No limit.
    Unlimited,
}

impl Amount {
    /// The number, where there is one.
    pub fn limited(self) -> Option<u64> {
        match self {
            Self::Limited(value) => Some(value),
            Self::Unlimited => None,
        }
    }
}

/// Page sizes go up to 64 KiB, so that v1's "no limit" is at least this.
const V1_UNLIMITED: u64 = i64::MAX as u64 - 0xFFFF;

/// Parses a limit.
pub fn amount(text: &str) -> Option<Amount> {
    match text.trim() {
        "max" | "-1" => Some(Amount::Unlimited),
        number => {
            let value: u64 = number.parse().ok()?;
            Some(if value >= V1_UNLIMITED {
                Amount::Unlimited
            } else {
                Amount::Limited(value)
            })
        }
    }
}

/// A single number.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The value behind `key` in lines of `key value`.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { number(value) } else { None }
    })
}

/// v2 `cpu.max`: quota and period in microseconds.
pub fn cpu_max(text: &str) -> Option<(Amount, u64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some((amount(quota)?, number(period)?))
}

/// Bytes read and written according to v1's `blkio.throttle.io_service_bytes`
/// (`8:0 Read 4096`), summed over the devices.
pub fn blkio_bytes(text: &str) -> (u64, u64) {
    let mut sums = (0u64, 0u64);
    for line in text.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(kind), Some(value)) = (fields.next(), fields.next().and_then(number)) else {
            continue;
        };
        match kind {
            "Read" => sums.0 = sums.0.saturating_add(value),
            "Write" => sums.1 = sums.1.saturating_add(value),
            _ => {}
        }
    }
    sums
}

/// The same from v2's `io.stat` (`8:0 rbytes=4096 wbytes=0 …`).
pub fn io_stat_bytes(text: &str) -> (u64, u64) {
    let mut sums = (0u64, 0u64);
    for field in text.split_whitespace() {
        match field.split_once('=') {
            Some(("rbytes", value)) => sums.0 = sums.0.saturating_add(number(value).unwrap_or(0)),
            Some(("wbytes", value)) => sums.1 = sums.1.saturating_add(number(value).unwrap_or(0)),
            _ => {}
        }
    }
    sums
}

/// `avg10` of the line `kind` (`some`, `full`) of a PSI file, in hundredths of
/// a percent, see the kernel's accounting/psi.rst.
pub fn psi_avg10(text: &str, kind: &str) -> Option<u32> {
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(kind))?;
    let value = line
        .split(' ')
        .find_map(|field| field.strip_prefix("avg10="))?;
    let (whole, part) = value.split_once('.')?;
    let part: u32 = if part.len() == 2 {
        part.parse().ok()?
    } else {
        return None;
    };
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(100)?
        .checked_add(part)
}

/// Whether some block device's scheduler file (`none [mq-deadline] kyber bfq`)
/// has this one selected.
pub fn scheduler_selected(text: &str, name: &str) -> bool {
    text.split_whitespace().any(|word| {
        word.strip_prefix('[')
            .and_then(|word| word.strip_suffix(']'))
            == Some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(amount("max\n"), Some(Amount::Unlimited));
        assert_eq!(amount("-1\n"), Some(Amount::Unlimited));
        assert_eq!(amount("9223372036854771712\n"), Some(Amount::Unlimited));
        assert_eq!(amount("4096\n"), Some(Amount::Limited(4096)));
        assert_eq!(amount("-2"), None);
        assert_eq!(
            cpu_max("10000 100000\n"),
            Some((Amount::Limited(10_000), 100_000))
        );
        assert_eq!(cpu_max("max 100000\n"), Some((Amount::Unlimited, 100_000)));
        assert_eq!(cpu_max("max"), None);
    }

    #[test]
    fn keyed_lines() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), Some(3));
        assert_eq!(keyed(text, "oom"), None);
        assert_eq!(keyed("oom_kill x", "oom_kill"), None);
    }

    #[test]
    fn block_io() {
        let v1 = "8:0 Read 100\n8:0 Write 7\n8:0 Sync 1\n8:0 Total 107\n8:16 Read 1\nTotal 108\n";
        assert_eq!(blkio_bytes(v1), (101, 7));
        let v2 = "8:0 rbytes=100 wbytes=7 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=0\n";
        assert_eq!(io_stat_bytes(v2), (101, 7));
        assert_eq!(io_stat_bytes(""), (0, 0));
    }

    #[test]
    fn pressure() {
        let text = "some avg10=12.34 avg60=0.69 avg300=0.54 total=17\nfull avg10=0.05 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(psi_avg10(text, "some"), Some(1234));
        assert_eq!(psi_avg10(text, "full"), Some(5));
        assert_eq!(psi_avg10(text, "none"), None);
        assert_eq!(psi_avg10("some avg10=1.2", "some"), None);
    }

    #[test]
    fn schedulers() {
        assert!(scheduler_selected("none mq-deadline [bfq]", "bfq"));
        assert!(!scheduler_selected("[none] mq-deadline bfq", "bfq"));
    }
}
