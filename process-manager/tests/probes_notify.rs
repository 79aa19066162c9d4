//! Probes that a service answers itself, by way of sd_notify(3).

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use blackhole_bus_schema::health::{ProbeCheck, Probes};
use blackhole_bus_schema::process::StateName;
use support::*;

/// A service that says things over NOTIFY_SOCKET: this test binary itself.
/// Not a test; does nothing when it is run as one.
#[test]
#[ignore = "a service for other tests"]
fn notifying_service() {
    let (Some(socket), Some(folder)) = (std::env::var_os("NOTIFY_SOCKET"), std::env::var_os("SAY"))
    else {
        return;
    };
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let folder = std::path::PathBuf::from(folder);
    // Says what stands in the files 1, 2, 3 … as they appear.
    for number in 1.. {
        let file = folder.join(number.to_string());
        let text = loop {
            match std::fs::read_to_string(&file) {
                Ok(text) => break text,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
            }
        };
        datagram.send_to(text.as_bytes(), &socket).unwrap();
    }
}

struct Speaker {
    folder: std::path::PathBuf,
    said: u32,
}

impl Speaker {
    fn new(bench: &Bench) -> Self {
        let folder = bench.path("say");
        std::fs::create_dir(&folder).unwrap();
        Self { folder, said: 0 }
    }

    fn spec(&self, generation: u64) -> blackhole_bus_schema::process::SpawnSpec {
        let own = std::env::current_exe().unwrap();
        let command = [
            own.to_str().unwrap(),
            "--ignored",
            "--exact",
            "notifying_service",
        ];
        let mut spec = spec("web.1", generation, &command);
        spec.env
            .insert("SAY".to_owned(), self.folder.display().to_string());
        spec
    }

    fn say(&mut self, text: &str) {
        self.said += 1;
        let (new, file) = (
            self.folder.join("new"),
            self.folder.join(self.said.to_string()),
        );
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, file).unwrap();
    }
}

/// A speaker that says `WATCHDOG=1` again and again.
struct Pinging {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Speaker>,
}

impl Speaker {
    fn ping(mut self) -> Pinging {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
            loop {
                tokio::select! {
                    _ = &mut stopped => return self,
                    _ = tick.tick() => self.say("WATCHDOG=1"),
                }
            }
        });
        Pinging { stop, task }
    }
}

impl Pinging {
    async fn silence(self) -> Speaker {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

#[tokio::test]
async fn ready_is_told_and_passes_the_probe() {
    let mut bench = Bench::start().await;
    let mut speaker = Speaker::new(&bench);
    let mut service = speaker.spec(1);
    service.probes = readiness(ProbeCheck::Notify);
    // Would wait for far longer than any test.
    service.probes.readiness.as_mut().unwrap().timeout_ms = 3_600_000;
    bench.run(&service).await;
    speaker.say("STATUS=loading");
    let loading = bench
        .wait("STATUS", 0, |told| match told {
            Told::Notified(notified) => Some(notified.notify.clone()),
            _ => None,
        })
        .await;
    assert_eq!(
        (loading.ready, loading.status.as_deref()),
        (false, Some("loading"))
    );
    speaker.say("READY=1\nSTATUS=serving");
    let passed = bench.probe("the probe", 0, |_| true).await;
    assert_eq!((passed.error, passed.in_a_row), (None, 1));
    let record = bench.list().await.remove(0);
    assert!(record.notify.ready);
    assert_eq!(record.notify.status.as_deref(), Some("serving"));
    // A manager that comes back knows it.
    bench.kill_manager();
    let told = bench.history.len();
    let records = bench.start_manager().await;
    assert!(records[0].notify.ready);
    bench
        .probe("the probe again", told, |result| result.error.is_none())
        .await;
}

#[tokio::test]
async fn a_watchdog_that_falls_silent_fails() {
    let mut bench = Bench::start().await;
    let speaker = Speaker::new(&bench);
    let mut service = speaker.spec(1);
    let mut watchdog = probe(ProbeCheck::Notify);
    watchdog.interval_ms = 700;
    service.probes = Probes {
        liveness: Some(watchdog),
        ..Probes::default()
    };
    bench.run(&service).await;
    let speaker = speaker.ping();
    bench
        .probe("a success", 0, |result| result.error.is_none())
        .await;
    let speaker = speaker.silence().await;
    let told = bench.history.len();
    let silent = bench
        .probe("a failure", told, |result| result.error.is_some())
        .await;
    assert!(silent.error.unwrap().contains("no WATCHDOG=1 for"));
    let told = bench.history.len();
    let speaker = speaker.ping();
    bench
        .probe("a success again", told, |result| result.error.is_none())
        .await;
    speaker.silence().await;
    // Pings are no news.
    let notified = bench
        .history
        .iter()
        .filter(|told| matches!(told, Told::Notified(_)))
        .count();
    assert_eq!(notified, 0, "{:?}", bench.history);
    assert_eq!(bench.list().await[0].state.name(), StateName::Running);
}
