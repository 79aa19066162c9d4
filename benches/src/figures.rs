//! Samples and their table.

use std::fmt::Write as _;
use std::time::Duration;

/// Durations of one kind, in the order in which they were measured.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// One more.
    pub fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The value that `percent` of all are not above; zero without any.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Lines of a table for a person.
#[derive(Debug, Default)]
pub struct Table {
    lines: Vec<[String; 6]>,
}

fn ms(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

impl Table {
    /// A line of latencies beside the median of their floor and their aim, both ratios.
    pub fn latency(&mut self, what: &str, samples: &Samples, floor: Duration, aim: Option<f64>) {
        let (middle, tail) = (samples.percentile(50), samples.percentile(99));
        let ratio = (!floor.is_zero()).then(|| middle.as_secs_f64() / floor.as_secs_f64());
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let aim = aim.map_or(String::new(), |aim| format!("≤ {aim:.1}"));
        let count = samples.count().to_string();
        self.line([what, &ms(middle), &ms(tail), &ratio, &aim, &count]);
    }

    /// A line of anything else.
    pub fn figure(&mut self, what: &str, value: &str, aim: &str) {
        self.line([what, value, "", "", aim, ""]);
    }

    fn line(&mut self, cells: [&str; 6]) {
        eprintln!("  {}", cells.join(" | "));
        self.lines.push(cells.map(str::to_owned));
    }

    /// All of it, in Markdown.
    pub fn text(&self) -> String {
        let mut text = "| | p50, ms | p99, ms | × floor | aim | samples |\n\
                        |---|---:|---:|---:|---:|---:|\n"
            .to_owned();
        for line in &self.lines {
            let _ = writeln!(text, "| {} |", line.join(" | "));
        }
        text
    }
}
