//! Figures as OpenMetrics text (version 1.0.0), which Prometheus reads.

use std::fmt::Write as _;

use blackhole_bus_schema::process::StateName;
use blackhole_bus_schema::registry::{CALL_BUCKETS_US, CallStats};

use crate::view::component::Found;
use crate::view::service::{Answers, ServiceRow, rows};

/// All figures. `now` is Unix time in nanoseconds.
pub fn text(now: u64, answers: &Answers, found: &[Found], calls: &[CallStats]) -> String {
    let mut out = Text::default();
    components(&mut out, found);
    instances(&mut out, &rows(now, answers));
    usage(&mut out, answers);
    routes(&mut out, calls);
    out.text.push_str("# EOF\n");
    out.text
}

#[derive(Default)]
struct Text {
    text: String,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family. It must be followed by all of its samples.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
        let _ = writeln!(self.text, "# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            let begin = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{begin}{key}=\"{}\"", escaped(value));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// A label's value, see "Escaping" in the OpenMetrics specification.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn components(out: &mut Text, found: &[Found]) {
    out.family(
        "blackhole_component_up",
        "gauge",
        "Whether the daemon answers.",
    );
    for one in found {
        let name = one.component.to_string();
        let up = u8::from(one.info().is_some());
        out.sample("blackhole_component_up", &[("component", &name)], up);
    }
    out.family(
        "blackhole_component_incarnation",
        "gauge",
        "How often the daemon was started with this state directory.",
    );
    for info in found.iter().filter_map(Found::info) {
        let name = info.component.to_string();
        out.sample(
            "blackhole_component_incarnation",
            &[("component", &name)],
            info.incarnation,
        );
    }
    out.family(
        "blackhole_component_events",
        "counter",
        "What a daemon has counted since its start, by name.",
    );
    for info in found.iter().filter_map(Found::info) {
        let component = info.component.to_string();
        for (name, count) in &info.counters {
            let labels = [("component", component.as_str()), ("name", name.as_str())];
            out.sample("blackhole_component_events_total", &labels, count);
        }
    }
}

fn instances(out: &mut Text, rows: &[ServiceRow]) {
    let name = |row: &ServiceRow| row.instance.to_string();
    out.family(
        "blackhole_instance_state",
        "stateset",
        "The state of an instance's process.",
    );
    for row in rows {
        for state in [
            StateName::Spawn,
            StateName::Running,
            StateName::Stopping,
            StateName::Terminated,
            StateName::Failed,
        ] {
            let (instance, text) = (name(row), state.to_string());
            let labels = [
                ("service", row.service.as_str()),
                ("instance", instance.as_str()),
                ("blackhole_instance_state", text.as_str()),
            ];
            let is = u8::from(row.state == Some(state));
            out.sample("blackhole_instance_state", &labels, is);
        }
    }
    type Figure = (
        &'static str,
        &'static str,
        fn(&ServiceRow) -> Option<String>,
    );
    let figures: [Figure; 4] = [
        (
            "blackhole_instance_ready",
            "Whether an instance is ready.",
            |row| {
                row.phase
                    .map(|phase| u8::from(phase == "ready").to_string())
            },
        ),
        (
            "blackhole_instance_restarts",
            "Restarts after failures, since an operator last started or reset it.",
            |row| row.restarts.map(|count| count.to_string()),
        ),
        (
            "blackhole_instance_circuit_open",
            "Whether an instance is not restarted any more.",
            |row| {
                row.circuit
                    .map(|_| u8::from(row.detail.circuit_open).to_string())
            },
        ),
        (
            "blackhole_instance_uptime_seconds",
            "Age of an instance's process.",
            |row| row.uptime_ms.map(|millis| seconds(millis * 1000)),
        ),
    ];
    for (family, help, read) in figures {
        out.family(family, "gauge", help);
        for row in rows {
            if let Some(value) = read(row) {
                let instance = name(row);
                let labels = [
                    ("service", row.service.as_str()),
                    ("instance", instance.as_str()),
                ];
                out.sample(family, &labels, value);
            }
        }
    }
}

/// Microseconds as seconds, exactly.
fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn usage(out: &mut Text, answers: &Answers) {
    use blackhole_bus_schema::resource::Usage;
    type Figure = (
        &'static str,
        &'static str,
        &'static str,
        fn(&Usage) -> Option<String>,
    );
    let figures: [Figure; 8] = [
        (
            "blackhole_instance_cpu_seconds",
            "counter",
            "CPU time since the instance's cgroup was made.",
            |usage| Some(seconds(usage.cpu_usec)),
        ),
        (
            "blackhole_instance_throttled_seconds",
            "counter",
            "Time that the CPU limit held its tasks back.",
            |usage| Some(seconds(usage.throttled_usec)),
        ),
        (
            "blackhole_instance_memory_bytes",
            "gauge",
            "Memory now.",
            |usage| usage.memory_bytes.map(|bytes| bytes.to_string()),
        ),
        (
            "blackhole_instance_memory_limit_bytes",
            "gauge",
            "Memory limit as the kernel has it.",
            |usage| usage.memory_limit_bytes.map(|bytes| bytes.to_string()),
        ),
        (
            "blackhole_instance_pids",
            "gauge",
            "Processes and threads.",
            |usage| usage.pids.map(|count| count.to_string()),
        ),
        (
            "blackhole_instance_io_read_bytes",
            "counter",
            "Bytes read from block devices.",
            |usage| usage.io_read_bytes.map(|bytes| bytes.to_string()),
        ),
        (
            "blackhole_instance_io_write_bytes",
            "counter",
            "Bytes written to block devices.",
            |usage| usage.io_write_bytes.map(|bytes| bytes.to_string()),
        ),
        (
            "blackhole_instance_oom_kills",
            "counter",
            "Processes that the kernel killed at the memory limit.",
            |usage| Some(usage.oom_kills.to_string()),
        ),
    ];
    for (family, kind, help, read) in figures {
        out.family(family, kind, help);
        let sample = match kind {
            "counter" => format!("{family}_total"),
            _ => family.to_owned(),
        };
        for usage in answers.usage.iter().flatten() {
            if let Some(value) = read(usage) {
                let (service, instance) = (
                    usage.instance.service().to_string(),
                    usage.instance.to_string(),
                );
                let labels = [
                    ("service", service.as_str()),
                    ("instance", instance.as_str()),
                ];
                out.sample(&sample, &labels, value);
            }
        }
    }
}

fn routes(out: &mut Text, calls: &[CallStats]) {
    const DURATION: &str = "blackhole_rpc_call_duration_seconds";
    const FAILED: &str = "blackhole_rpc_calls_failed";
    out.family(
        DURATION,
        "histogram",
        "How long calls between services took, by caller, service and method.",
    );
    for route in calls {
        let bounds = CALL_BUCKETS_US.iter().map(|bound| seconds(*bound));
        for (bound, count) in bounds.zip(&route.buckets) {
            let labels = labels(route, Some(&bound));
            out.sample(&format!("{DURATION}_bucket"), &labels, count);
        }
        let all = labels(route, Some("+Inf"));
        out.sample(&format!("{DURATION}_bucket"), &all, route.calls);
        let own = labels(route, None);
        out.sample(&format!("{DURATION}_sum"), &own, seconds(route.sum_us));
        out.sample(&format!("{DURATION}_count"), &own, route.calls);
    }
    out.family(FAILED, "counter", "Calls that did not end with ok.");
    for route in calls {
        let own = labels(route, None);
        out.sample(&format!("{FAILED}_total"), &own, route.failed);
    }
}

fn labels<'a>(route: &'a CallStats, bound: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let mut labels = vec![
        ("caller", route.caller.as_str()),
        ("service", route.service.as_str()),
        ("method", route.method.as_str()),
    ];
    labels.extend(bound.map(|bound| ("le", bound)));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::component::tests::running;
    use crate::view::status::tests::status;
    use blackhole_bus_schema::names::Component;
    use blackhole_bus_schema::supervision::Phase;

    #[test]
    fn figures_are_open_metrics() {
        let route = CallStats {
            caller: "shop".into(),
            service: "db".into(),
            method: "a\"\\\n".into(),
            calls: 3,
            failed: 1,
            sum_us: 1_250_000,
            buckets: vec![1; CALL_BUCKETS_US.len()],
            ..CallStats::default()
        };
        let answers = Answers {
            status: Some(vec![status("web.1", Phase::Ready)]),
            ..Answers::default()
        };
        let mut found = running(Component::Supervisor, 7);
        if let crate::view::component::Presence::Running(info) = &mut found.presence {
            info.counters.insert("link.gaps".into(), 2);
        }
        let text = text(2_000_000_000, &answers, &[found], &[route]);
        let lines: Vec<&str> = text.lines().collect();
        for line in [
            r#"blackhole_component_up{component="supervisor"} 1"#,
            r#"blackhole_component_events_total{component="supervisor",name="link.gaps"} 2"#,
            r#"blackhole_instance_ready{service="web",instance="web.1"} 1"#,
            r#"blackhole_rpc_call_duration_seconds_bucket{caller="shop",service="db",method="a\"\\\n",le="0.000100"} 1"#,
            r#"blackhole_rpc_call_duration_seconds_bucket{caller="shop",service="db",method="a\"\\\n",le="+Inf"} 3"#,
            r#"blackhole_rpc_call_duration_seconds_sum{caller="shop",service="db",method="a\"\\\n"} 1.250000"#,
            r#"blackhole_rpc_calls_failed_total{caller="shop",service="db",method="a\"\\\n"} 1"#,
        ] {
            assert!(lines.contains(&line), "{line} is not in\n{text}");
        }
        assert_eq!(lines.last(), Some(&"# EOF"));
        // One family, one place: no name is declared twice.
        let types: Vec<&&str> = lines
            .iter()
            .filter(|line| line.starts_with("# TYPE"))
            .collect();
        let different: std::collections::BTreeSet<_> = types.iter().collect();
        assert_eq!(types.len(), different.len());
    }
}
