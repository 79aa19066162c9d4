//! Probes of real services.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use blackhole_bus_schema::health::{ProbeCheck, ProbeKind, Probes};
use blackhole_bus_schema::process::ListProcesses;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn exec(script: &str) -> ProbeCheck {
    ProbeCheck::Exec(["/bin/sh", "-c", script].map(str::to_owned).to_vec())
}

/// An HTTP server of this test that answers every request with a status that can be changed.
struct Http {
    url: String,
    status: Arc<AtomicU16>,
    hits: Arc<AtomicUsize>,
}

async fn http(status: u16) -> Http {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health?x=1", listener.local_addr().unwrap());
    let (status, hits) = (
        Arc::new(AtomicU16::new(status)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (current, counter) = (status.clone(), hits.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
                    _ => break,
                }
            }
            assert!(
                request.starts_with(b"GET /health?x=1 HTTP/1.1\r\n"),
                "{request:?}"
            );
            counter.fetch_add(1, Ordering::SeqCst);
            let status = current.load(Ordering::SeqCst);
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Http { url, status, hits }
}

#[tokio::test]
async fn http_tells_health_by_status_and_healthy_services_are_silent() {
    let mut bench = Bench::start().await;
    let server = http(200).await;
    let mut service = sleeper("web.1", 1);
    service.probes = readiness(ProbeCheck::Http(server.url.clone()));
    service.probes.readiness.as_mut().unwrap().success_threshold = 2;
    bench.run(&service).await;
    let ready = bench
        .probe("two successes", 0, |result| result.in_a_row == 2)
        .await;
    assert_eq!((ready.error, ready.probe), (None, ProbeKind::Readiness));
    // Some more rounds, none of which is told.
    let hits = server.hits.load(Ordering::SeqCst);
    until("more probes", || {
        (server.hits.load(Ordering::SeqCst) > hits + 3).then_some(())
    })
    .await;
    let told = bench.history.len();
    server.status.store(503, Ordering::SeqCst);
    let failed = bench
        .probe("a failure", told, |result| result.error.is_some())
        .await;
    assert!(failed.error.unwrap().ends_with("status 503"));
    assert_eq!(failed.in_a_row, 1);
    let between = bench.history[told..]
        .iter()
        .filter(|told| matches!(told, Told::Probe(_)))
        .count();
    assert_eq!(
        between,
        1,
        "a success was told: {:?}",
        &bench.history[told..]
    );
    server.status.store(302, Ordering::SeqCst);
    let again = bench.history.len();
    bench
        .probe("success again", again, |result| {
            result.error.is_none() && result.in_a_row == 1
        })
        .await;
}

#[tokio::test]
async fn tcp_is_healthy_when_somebody_listens() {
    let mut bench = Bench::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut service = sleeper("web.1", 1);
    service.probes = readiness(ProbeCheck::Tcp(address.clone()));
    bench.run(&service).await;
    let refused = bench
        .probe("a failure", 0, |result| result.error.is_some())
        .await;
    assert!(refused.error.unwrap().contains(&address));
    let _listener = TcpListener::bind(&address).await.unwrap();
    bench
        .probe("success", 0, |result| result.error.is_none())
        .await;
}

#[tokio::test]
async fn an_unanswered_probe_fails_after_its_timeout() {
    let mut bench = Bench::start().await;
    // Listens and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut service = sleeper("web.1", 1);
    let url = format!("http://{}/", listener.local_addr().unwrap());
    service.probes = readiness(ProbeCheck::Http(url));
    service.probes.readiness.as_mut().unwrap().timeout_ms = 50;
    bench.run(&service).await;
    let failed = bench
        .probe("two failures", 0, |result| result.in_a_row == 2)
        .await;
    assert_eq!(failed.error.as_deref(), Some("no answer within 50 ms"));
    assert!(failed.took_us >= 50_000);
}

#[tokio::test]
async fn exec_runs_in_the_context_of_the_service() {
    let mut bench = Bench::start_with(&[("PM_TEST_SECRET", "hunter2")]).await;
    let output = bench.path("context");
    let context = "echo $BLACKHOLE_INSTANCE $SECRET $(id -u):$(id -g) $(pwd) $(ulimit -n)";
    let text = format!("{context} > {0}.new; mv {0}.new {0}", output.display());
    let mut service = script("web.1", 1, &format!("{context} > $OUT; exec sleep 100000"));
    let own = bench.path("own");
    service
        .env
        .insert("SECRET".to_owned(), "${env:PM_TEST_SECRET}".to_owned());
    service
        .env
        .insert("OUT".to_owned(), own.display().to_string());
    service.working_dir = Some("/usr".to_owned());
    service.open_files = Some(77);
    if rustix::process::geteuid().is_root() {
        // Somebody who may write here and is not root.
        std::fs::set_permissions(
            bench.path(""),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .unwrap();
        service.user = Some("nobody".to_owned());
    }
    service.probes = readiness(exec(&text));
    bench.run(&service).await;
    let result = bench.probe("a result", 0, |_| true).await;
    assert_eq!(result.error, None);
    let probed = std::fs::read_to_string(&output).unwrap();
    let service = until("the service's own word", || {
        std::fs::read_to_string(&own)
            .ok()
            .filter(|text| text.ends_with('\n'))
    })
    .await;
    assert_eq!(probed, service);
    assert!(probed.starts_with("web.1 hunter2 "), "{probed}");
    assert!(probed.ends_with("/usr 77\n"), "{probed}");
}

/// A v1 cgroup of its own below this process's, removed again.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let below = own
            .lines()
            .find_map(|line| line.split_once(':')?.1.strip_prefix("pids:"))?;
        let name = format!("bhpm-{}-probe", std::process::id());
        let path = std::path::Path::new("/sys/fs/cgroup/pids")
            .join(below.trim_start_matches('/'))
            .join(name);
        std::fs::create_dir(&path).ok().map(|()| Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the last process in it has been reaped.
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

#[tokio::test]
async fn exec_joins_the_cgroups_of_the_service() {
    let Some(cgroup) = Cgroup::new() else {
        eprintln!("SKIPPED: no cgroup of the v1 controller pids can be made here");
        return;
    };
    let mut bench = Bench::start().await;
    let output = bench.path("cgroup");
    let text = format!(
        "cat /proc/self/cgroup > {0}.new; mv {0}.new {0}",
        output.display()
    );
    let mut service = sleeper("web.1", 1);
    service.grant = Some(blackhole_bus_schema::limits::LimitGrant {
        cgroups: vec![blackhole_bus_schema::limits::CgroupDir {
            path: cgroup.0.display().to_string(),
            join: blackhole_bus_schema::limits::JoinMethod::V1Tasks,
        }],
        ..Default::default()
    });
    service.probes = readiness(exec(&text));
    bench.run(&service).await;
    let result = bench.probe("a result", 0, |_| true).await;
    assert_eq!(result.error, None);
    let joined = std::fs::read_to_string(&output).unwrap();
    let name = cgroup.0.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(
        joined
            .lines()
            .any(|line| line.contains("pids:") && line.ends_with(&name)),
        "{joined}"
    );
    bench.stop("web.1", 1).await.unwrap();
    drop(bench);
}

#[tokio::test]
async fn a_failing_exec_says_what_it_said_and_a_slow_one_is_killed() {
    let mut bench = Bench::start().await;
    let file = bench.path("child");
    let mut service = sleeper("web.1", 1);
    let slow = format!(
        "echo $$ > {0}.new; mv {0}.new {0}; sleep 100000 & wait",
        file.display()
    );
    service.probes = Probes {
        readiness: Some(probe(exec("echo all is lost >&2; exit 4"))),
        liveness: Some(probe(exec(&slow))),
        startup: None,
    };
    service.probes.liveness.as_mut().unwrap().timeout_ms = 200;
    bench.run(&service).await;
    let failed = bench
        .probe("a failure", 0, |result| {
            result.probe == ProbeKind::Readiness
        })
        .await;
    let error = failed.error.unwrap();
    assert!(
        error.contains("exit status: 4") && error.ends_with(": all is lost"),
        "{error}"
    );
    let slow = bench
        .probe("the slow one", 0, |result| {
            result.probe == ProbeKind::Liveness
        })
        .await;
    assert_eq!(slow.error.as_deref(), Some("no answer within 200 ms"));
    let child: u32 = std::fs::read_to_string(&file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let group = || {
        processes_naming(&bench.dirs.run).into_iter().any(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let group = stat
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split(' ').nth(3));
            group.and_then(|group| group.parse().ok()) == Some(child)
        })
    };
    until("the end of the slow probe's group", || {
        (!group()).then_some(())
    })
    .await;
    let missing = ProbeCheck::Exec(vec!["/no/such/probe".to_owned()]);
    let mut other = sleeper("web.2", 1);
    other.probes = readiness(missing);
    bench.run(&other).await;
    let failed = bench
        .probe("the missing one", 0, |result| {
            result.instance == name("web.2")
        })
        .await;
    assert!(
        failed
            .error
            .unwrap()
            .contains("/no/such/probe: No such file")
    );
}

#[tokio::test]
async fn startup_gates_the_others_and_probes_end_with_their_process() {
    let mut bench = Bench::start().await;
    let (gate, beat) = (bench.path("gate"), bench.path("beat"));
    let mut service = sleeper("web.1", 1);
    service.probes = Probes {
        startup: Some(probe(exec(&format!("test -e {}", gate.display())))),
        readiness: Some(probe(exec(&format!("echo x >> {}", beat.display())))),
        liveness: None,
    };
    bench.run(&service).await;
    bench
        .probe("startup to fail twice", 0, |result| result.in_a_row == 2)
        .await;
    assert!(
        !beat.exists(),
        "readiness was probed before startup had passed"
    );
    std::fs::write(&gate, "").unwrap();
    bench
        .probe("startup", 0, |result| {
            result.probe == ProbeKind::Startup && result.error.is_none()
        })
        .await;
    bench
        .probe("readiness", 0, |result| {
            result.probe == ProbeKind::Readiness
        })
        .await;
    let told = bench.history.len();
    bench.stop("web.1", 1).await.unwrap();
    bench.settle().await;
    let after = bench.history[told..]
        .iter()
        .filter(|told| matches!(told, Told::Probe(_)))
        .count();
    assert_eq!(
        after,
        0,
        "probed after its end: {:?}",
        &bench.history[told..]
    );
    // A new spawn begins anew.
    std::fs::remove_file(&gate).unwrap();
    bench
        .run(&{
            let mut next = service.clone();
            next.generation = service.generation.next();
            next
        })
        .await;
    let first = bench
        .probe("the next one", told, |result| result.generation.0 == 2)
        .await;
    assert_eq!(first.probe, ProbeKind::Startup);
    assert!(first.error.is_some());
}

#[tokio::test]
async fn adopted_services_are_probed_on() {
    let mut bench = Bench::start().await;
    let server = http(200).await;
    let mut service = sleeper("web.1", 1);
    service.probes = readiness(ProbeCheck::Http(server.url.clone()));
    // An adopted one does not wait for its delay again: it has run for longer.
    service.probes.readiness.as_mut().unwrap().initial_delay_ms = 300;
    bench.run(&service).await;
    bench
        .probe("success", 0, |result| result.error.is_none())
        .await;
    bench.kill_manager();
    let told = bench.history.len();
    bench.start_manager().await;
    let again = bench
        .probe("success again", told, |result| result.error.is_none())
        .await;
    assert_eq!(again.generation.0, 1);
    let told = bench.history.len();
    server.status.store(500, Ordering::SeqCst);
    bench
        .probe("a failure", told, |result| result.error.is_some())
        .await;
}

#[tokio::test]
async fn who_follows_from_here_is_told_the_latest_results() {
    let mut bench = Bench::start().await;
    let server = http(200).await;
    let mut service = sleeper("web.1", 1);
    service.probes = readiness(ProbeCheck::Http(server.url.clone()));
    bench.run(&service).await;
    bench
        .probe("success", 0, |result| result.error.is_none())
        .await;
    let hits = server.hits.load(Ordering::SeqCst);
    until("more probes", || {
        (server.hits.load(Ordering::SeqCst) > hits + 2).then_some(())
    })
    .await;
    let told = bench.history.len();
    let follow = ListProcesses {
        after: None,
        probes: true,
    };
    bench.request(&follow).await.unwrap();
    let latest = bench.probe("the latest result", told, |_| true).await;
    assert!(latest.error.is_none() && latest.in_a_row > 1, "{latest:?}");
}

/// A service whose method `health` answers by whether a file is there: this
/// test binary itself. Not a test; does nothing when it is run as one.
#[tokio::test]
#[ignore = "a service for other tests"]
async fn calling_service() {
    use blackhole_bus_schema::rpc::{Client, Code, Methods, Status};
    let Some(file) = std::env::var_os("HEALTHY") else {
        return;
    };
    let client = Client::from_env().await.unwrap();
    let file = std::path::PathBuf::from(file);
    client.serve(Methods::new().on("health", move |_| {
        let healthy = file.exists();
        async move {
            if healthy {
                Ok("".into())
            } else {
                Err(Status::new(Code::Unavailable, "not today"))
            }
        }
    }));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn rpc_probes_call_the_instance_by_way_of_the_bridge() {
    use blackhole_bus_schema::daemon::{self, DaemonArgs};
    let mut bench = Bench::start().await;
    let healthy = bench.path("healthy");
    let own = std::env::current_exe().unwrap();
    let mut service = spec(
        "web.1",
        1,
        &[
            own.to_str().unwrap(),
            "--ignored",
            "--exact",
            "calling_service",
        ],
    );
    service
        .env
        .insert("HEALTHY".to_owned(), healthy.display().to_string());
    service.probes = readiness(ProbeCheck::Rpc("health".to_owned()));
    service.probes.readiness.as_mut().unwrap().timeout_ms = 300;
    bench.run(&service).await;
    let away = bench.probe("a failure", 0, |_| true).await;
    assert!(away.error.is_some());
    // A bridge within this process; it ends with it.
    let args = DaemonArgs {
        config: None,
        run_dir: Some(bench.dirs.run.clone()),
        state_dir: Some(bench.dirs.state.clone()),
    };
    std::thread::spawn(move || {
        let component = blackhole_bus_schema::names::Component::Bridge;
        daemon::run(component, args, blackhole_bridge::run).unwrap();
    });
    let no = bench
        .probe("the service's own no", 0, |result| {
            result
                .error
                .as_ref()
                .is_some_and(|error| error.contains("not today"))
        })
        .await;
    assert!(no.error.unwrap().starts_with("call health: UNAVAILABLE"));
    std::fs::write(&healthy, "").unwrap();
    bench
        .probe("success", 0, |result| result.error.is_none())
        .await;
}
