//! Sockets and stored descriptors: what a service finds open, and that they
//! outlive it.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking; a service takes over the descriptors that it was given"
)]

mod shim_support;

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use blackhole_bus_schema::process::{
    ExitResult, Permit, SocketSpec, SpawnSpec, SpawnStep, StopSpec,
};
use blackhole_process_manager::shim::client::{ShimEvent, ShimPermit, StopRequest};
use blackhole_process_manager::shim::release;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType};
use shim_support::{Rig, line_of, spec, until};

/// A service that this very program plays, see the tests below that are ignored.
fn role(name: &str) -> SpawnSpec {
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    spec(
        "web.1",
        &[program, "--ignored", "--exact", "--nocapture", name],
    )
}

fn socket(listen: &str) -> SocketSpec {
    SocketSpec {
        listen: listen.to_owned(),
        backlog: 128,
        mode: None,
        shared: false,
    }
}

/// A port that nobody has, and that the kernel gives to no connection: those of the
/// tests beside are many.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + std::process::id().wrapping_mul(61).wrapping_add(next) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn stop(again: bool) -> StopRequest {
    StopRequest {
        stop: Some(StopSpec {
            signal: 15,
            grace_ms: 10_000,
        }),
        again,
        ..StopRequest::default()
    }
}

#[test]
#[ignore = "a service of other tests"]
fn answer() {
    assert_eq!(std::env::var("LISTEN_FDS").unwrap(), "1");
    assert_eq!(
        std::env::var("LISTEN_PID").unwrap(),
        std::process::id().to_string()
    );
    // SAFETY: passed to this process, and nobody else takes it.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    for connection in listener.incoming() {
        let _ = connection.unwrap().write_all(b"hello\n");
    }
}

#[tokio::test]
async fn a_service_finds_its_sockets_by_name() {
    let rig = Rig::new().await;
    let path = rig.path("web.sock");
    let mut spec = rig.script(
        "echo $LISTEN_FDS $LISTEN_FDNAMES; [ $LISTEN_PID = $$ ] && echo mine
         ls -l /proc/$$/fd | grep -c socket:; exec sleep 1000",
    );
    let port = free_port();
    let tcp = socket(&format!("127.0.0.1:{port}"));
    spec.settings.sockets.insert("http".into(), tcp);
    let mut unix = socket(path.to_str().unwrap());
    unix.mode = Some(0o600);
    spec.settings.sockets.insert("admin".into(), unix);
    let running = rig.spawn(&spec).await;
    until("its output", || {
        (rig.log(&spec).lines().count() == 3).then_some(())
    })
    .await;
    assert_eq!(rig.log(&spec), "2 admin:http\nmine\n2\n");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    UnixStream::connect(&path).unwrap();
    let mut running = running;
    running.handle.stop(stop(false)).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
    // Stopped for good: nobody listens, and the file is gone.
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!path.exists());
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let rig = Rig::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut spec = rig.script("true");
    spec.settings
        .sockets
        .insert("http".into(), socket(&address));
    let failure = rig.fail(&spec).await;
    assert_eq!(
        (failure.step, failure.errno),
        (SpawnStep::PrepareEnvironment, libc::EADDRINUSE)
    );
    assert_eq!(failure.operation, format!("open socket http on {address}"));
    assert!(failure.hint.contains("another process"), "{failure}");
    let path = rig.path("web.sock");
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut spec = rig.script("true");
    let listen = socket(path.to_str().unwrap());
    spec.settings.sockets.insert("s".into(), listen);
    assert_eq!(rig.fail(&spec).await.errno, libc::EADDRINUSE);
    assert!(path.exists(), "another's socket is left alone");
}

#[tokio::test]
async fn a_stale_file_is_replaced() {
    let rig = Rig::new().await;
    let path = rig.path("web.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut spec = rig.script("exec sleep 1000");
    let listen = socket(path.to_str().unwrap());
    spec.settings.sockets.insert("s".into(), listen);
    let _running = rig.spawn(&spec).await;
    UnixStream::connect(&path).unwrap();
}

/// Connects all the time, until it is told to end; counts connections and refusals.
struct Caller {
    end: Arc<AtomicBool>,
    connections: Arc<AtomicU32>,
    refusals: std::thread::JoinHandle<Vec<String>>,
}

impl Caller {
    fn begin(port: u16) -> Self {
        let (end, connections) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (ended, counted) = (end.clone(), connections.clone());
        let refusals = std::thread::spawn(move || {
            let mut refusals = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                match TcpStream::connect(("127.0.0.1", port)) {
                    Ok(mut stream) => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        // One that a process that is killed has taken is reset.
                        let _ = stream.read_to_string(&mut String::new());
                    }
                    Err(error) => refusals.push(error.to_string()),
                }
            }
            refusals
        });
        Self {
            end,
            connections,
            refusals,
        }
    }

    fn count(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    fn end(self) -> Vec<String> {
        self.end.store(true, Ordering::Relaxed);
        self.refusals.join().unwrap()
    }
}

#[tokio::test]
async fn no_connection_is_refused_over_twenty_restarts() {
    let rig = Rig::new().await;
    let port = free_port();
    let mut spec = role("answer");
    let listen = socket(&format!("127.0.0.1:{port}"));
    spec.settings.sockets.insert("http".into(), listen);
    let mut running = rig.spawn(&spec).await;
    let caller = Caller::begin(port);
    for round in 0..20 {
        let before = caller.count();
        until("it answers", || (caller.count() > before + 2).then_some(())).await;
        match round % 3 {
            0 => running.handle.stop(stop(true)).await.unwrap(),
            1 => running.handle.signal(9).await.unwrap(),
            // For its health.
            _ => running.handle.kill(true).await.unwrap(),
        }
        running.exited().await;
        spec.generation = spec.generation.next();
        running = rig.spawn(&spec).await;
    }
    let before = caller.count();
    until("it answers", || (caller.count() > before).then_some(())).await;
    assert_eq!(caller.end(), Vec::<String>::new());
    running.handle.stop(stop(false)).await.unwrap();
    running.exited().await;
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[tokio::test]
async fn a_restart_by_permit_passes_them_on() {
    let rig = Rig::new().await;
    let port = free_port();
    let mut spec = role("answer");
    let listen = socket(&format!("127.0.0.1:{port}"));
    spec.settings.sockets.insert("http".into(), listen);
    let mut request = rig.request(&spec);
    request.permit = Some(ShimPermit {
        permit: Permit {
            generation: spec.generation.next(),
            expires_after_ms: None,
        },
        env: Default::default(),
    });
    let (_, handle, mut events) = rig.server.spawn(&request).await.unwrap();
    let caller = Caller::begin(port);
    until("it answers", || (caller.count() > 2).then_some(())).await;
    handle.signal(9).await.unwrap();
    while !matches!(events.next().await.unwrap(), ShimEvent::Restarted { .. }) {}
    let before = caller.count();
    until("it answers", || (caller.count() > before + 2).then_some(())).await;
    assert_eq!(caller.end(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_kept_outlives_a_start_that_fails_and_can_be_let_go() {
    let rig = Rig::new().await;
    let path = rig.path("web.sock");
    let mut good = rig.script("exec sleep 1000");
    let listen = socket(path.to_str().unwrap());
    good.settings.sockets.insert("s".into(), listen);
    let mut running = rig.spawn(&good).await;
    running.handle.signal(9).await.unwrap();
    running.exited().await;
    let waiting = UnixStream::connect(&path).unwrap();

    let mut bad = good.clone();
    bad.generation = bad.generation.next();
    bad.command = vec!["/no/such/program".into()];
    rig.fail(&bad).await;
    drop(waiting);
    UnixStream::connect(&path).unwrap();

    release(&rig.dirs.shim_socket(&good.instance));
    until("it is closed", || {
        UnixStream::connect(&path).is_err().then_some(())
    })
    .await;
    until("its file is gone", || (!path.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_kept_socket_whose_file_was_removed_is_opened_anew() {
    let rig = Rig::new().await;
    let path = rig.path("web.sock");
    let mut spec = rig.script("exec sleep 1000");
    let listen = socket(path.to_str().unwrap());
    spec.settings.sockets.insert("s".into(), listen);
    let mut running = rig.spawn(&spec).await;
    running.handle.signal(9).await.unwrap();
    running.exited().await;
    UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    spec.generation = spec.generation.next();
    let _running = rig.spawn(&spec).await;
    UnixStream::connect(&path).unwrap();
}

/// A connection that waits is answered: it is with a socket that was never closed.
async fn answered(rig: &Rig, spec: &SpawnSpec, waiting: TcpStream) {
    let _running = rig.spawn(spec).await;
    let said = tokio::task::spawn_blocking(move || {
        let mut said = [0; 6];
        (&waiting).read_exact(&mut said).map(|()| said)
    });
    assert_eq!(&said.await.unwrap().unwrap(), b"hello\n");
}

/// A service that has answered once, has ended and is to run again.
async fn between_two_lives(rig: &Rig) -> (SpawnSpec, TcpStream) {
    let port = free_port();
    let mut spec = role("answer");
    let listen = socket(&format!("127.0.0.1:{port}"));
    spec.settings.sockets.insert("http".into(), listen);
    let mut running = rig.spawn(&spec).await;
    running.handle.signal(9).await.unwrap();
    running.exited().await;
    spec.generation = spec.generation.next();
    (spec, TcpStream::connect(("127.0.0.1", port)).unwrap())
}

#[tokio::test]
async fn what_is_kept_outlives_a_start_that_cannot_open_another_socket() {
    let rig = Rig::new().await;
    let (mut spec, waiting) = between_two_lives(&rig).await;
    let mut bad = spec.clone();
    let missing = socket(rig.path("missing/b.sock").to_str().unwrap());
    bad.settings.sockets.insert("b".into(), missing);
    for _ in 0..2 {
        assert_eq!(rig.fail(&bad).await.errno, libc::ENOENT);
        bad.generation = bad.generation.next();
    }
    spec.generation = bad.generation;
    answered(&rig, &spec, waiting).await;
}

#[tokio::test]
async fn what_is_kept_outlives_who_came_for_it_and_died() {
    let rig = Rig::new().await;
    let (spec, waiting) = between_two_lives(&rig).await;
    let mut path = rig.dirs.shim_socket(&spec.instance).into_os_string();
    path.push(".k");
    let address = rustix::net::SocketAddrUnix::new(Path::new(&path)).unwrap();
    let visitor = || {
        let (family, kind) = (rustix::net::AddressFamily::UNIX, SocketType::SEQPACKET);
        let visitor = rustix::net::socket(family, kind, None).unwrap();
        rustix::net::connect(&visitor, &address).unwrap();
        visitor
    };
    drop(visitor());
    // This one has had all, and says nothing.
    let silent = visitor();
    let mut bytes = [0; 4096];
    let flags = rustix::net::RecvFlags::empty();
    while rustix::net::recv(&silent, &mut bytes, flags).unwrap().0 != 1 {}
    drop(silent);
    answered(&rig, &spec, waiting).await;
}

#[tokio::test]
async fn a_keeper_has_nothing_of_which_there_are_few() {
    let rig = Rig::new().await;
    let mut spec = rig.script("exec sleep 1000");
    let listen = socket(&format!("127.0.0.1:{}", free_port()));
    spec.settings.sockets.insert("s".into(), listen);
    let mut running = rig.spawn(&spec).await;
    let shim = running.started.shim_pid;
    running.handle.signal(9).await.unwrap();
    running.exited().await;
    // A user may have 128 of them.
    let held = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().flatten();
    let held: Vec<_> = held
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .collect();
    assert!(!held.is_empty());
    let inotify = |path: &std::path::PathBuf| path.to_string_lossy().contains("inotify");
    assert!(!held.iter().any(inotify), "{held:?}");
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let rig = Rig::new().await;
    let path = rig.path("precious");
    let mut spec = rig.script("exec sleep 1000");
    let listen = socket(path.to_str().unwrap());
    spec.settings.sockets.insert("s".into(), listen);
    fs::write(&path, "text").unwrap();
    let failure = rig.fail(&spec).await;
    assert_eq!(failure.errno, libc::EEXIST);
    assert!(failure.hint.contains("no socket"), "{failure}");
    assert_eq!(fs::read(&path).unwrap(), b"text");
    // Nor what has taken the place of its own.
    fs::remove_file(&path).unwrap();
    let mut running = rig.spawn(&spec).await;
    fs::remove_file(&path).unwrap();
    fs::write(&path, "text").unwrap();
    running.handle.stop(stop(false)).await.unwrap();
    running.exited().await;
    assert_eq!(fs::read(&path).unwrap(), b"text");
}

/// A socket at `path` that takes no more connections and nobody serves.
fn full(path: &Path, kind: SocketType) -> Vec<std::os::fd::OwnedFd> {
    let address = rustix::net::SocketAddrUnix::new(path).unwrap();
    let flags = rustix::net::SocketFlags::NONBLOCK;
    let family = rustix::net::AddressFamily::UNIX;
    let socket = || rustix::net::socket_with(family, kind, flags, None).unwrap();
    let mut all = vec![socket()];
    rustix::net::bind(&all[0], &address).unwrap();
    rustix::net::listen(&all[0], 0).unwrap();
    loop {
        let caller = socket();
        if rustix::net::connect(&caller, &address).is_err() {
            return all;
        }
        all.push(caller);
    }
}

#[tokio::test]
async fn nobody_is_waited_for_who_listens_and_does_not_answer() {
    let rig = Rig::new().await;
    let path = rig.path("web.sock");
    let mut spec = rig.script("exec sleep 1000");
    let kept = rig.dirs.shim_socket(&spec.instance).with_extension("k");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    let _keeper = full(&kept, SocketType::SEQPACKET);
    let _other = full(&path, SocketType::STREAM);
    let listen = socket(path.to_str().unwrap());
    spec.settings.sockets.insert("s".into(), listen);
    let failed = tokio::time::timeout(std::time::Duration::from_secs(60), rig.fail(&spec));
    assert_eq!(failed.await.unwrap().errno, libc::EADDRINUSE);
}

#[test]
#[ignore = "a service of other tests"]
fn store() {
    let said = std::env::var("BH_SAID").unwrap();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut text = String::new();
    if names == "state" {
        // SAFETY: passed to this process, and nobody else takes it.
        let mut file = unsafe { fs::File::from_raw_fd(3) };
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
    }
    if std::env::var_os("BH_REMOVE").is_some() {
        notify("FDSTOREREMOVE=1\nFDNAME=state", None);
    } else {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(format!("{text}+").as_bytes()).unwrap();
        notify("FDSTOREREMOVE=1\nFDNAME=state", None);
        notify("FDSTORE=1\nFDNAME=state\nFDPOLL=0", Some(&file));
    }
    barrier();
    fs::write(&said, format!("{names}|{text}\n")).unwrap();
}

#[test]
#[ignore = "a service of other tests"]
fn flood() {
    let file = tempfile::tempfile().unwrap();
    for _ in 0..500 {
        notify("FDSTORE=1", Some(&file));
    }
    barrier();
}

#[tokio::test]
async fn what_a_service_says_does_not_fill_the_disk() {
    let rig = Rig::new().await;
    let log = rig.dirs.state.join("log/fork-server.log");
    let mut spec = role("flood");
    spec.env.insert("TMPDIR".into(), "/tmp".into());
    let mut running = rig.spawn(&spec).await;
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::Success, "{}", rig.log(&spec));
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches("fd_store is full").count(), 1, "{said}");
    assert_eq!(
        fs::metadata(&log).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // Whatever else writes there: it does not grow without end.
    let mut file = fs::File::options().append(true).open(&log).unwrap();
    file.write_all(&vec![b'\n'; 2 << 20]).unwrap();
    spec.generation = spec.generation.next();
    rig.spawn(&spec).await.exited().await;
    assert!(fs::metadata(&log).unwrap().len() < 1 << 20);
}

/// sd_pid_notify_with_fds(3).
fn notify(text: &str, file: Option<&dyn AsFd>) {
    let socket = UnixDatagram::unbound().unwrap();
    let path = std::env::var("NOTIFY_SOCKET").unwrap();
    socket.connect(Path::new(&path)).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let parts = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::empty()).unwrap();
}

/// sd_notify_barrier(3): returns when all that was said before has been taken in.
fn barrier() {
    let (mut read, write) = std::io::pipe().unwrap();
    notify("BARRIER=1", Some(&write));
    drop(write);
    assert_eq!(read.read(&mut [0]).unwrap(), 0, "it is closed");
}

#[tokio::test]
async fn what_a_service_stores_comes_back_after_a_restart() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let mut spec = role("store");
    spec.env
        .insert("BH_SAID".into(), said.display().to_string());
    spec.env.insert("TMPDIR".into(), "/tmp".into());
    spec.settings.fd_store = 1;
    let round = async |spec: &mut SpawnSpec| {
        let _ = fs::remove_file(&said);
        let mut running = rig.spawn(spec).await;
        let line = line_of(&said).await;
        let exit = running.exited().await;
        assert_eq!(exit.result, ExitResult::Success, "{}", rig.log(spec));
        spec.generation = spec.generation.next();
        line
    };
    assert_eq!(round(&mut spec).await, "|");
    assert_eq!(round(&mut spec).await, "state|+");
    assert_eq!(round(&mut spec).await, "state|++");
    spec.env.insert("BH_REMOVE".into(), "1".into());
    assert_eq!(round(&mut spec).await, "state|+++");
    assert_eq!(round(&mut spec).await, "|");
    // Without room nothing is kept.
    spec.env.remove("BH_REMOVE");
    spec.settings.fd_store = 0;
    assert_eq!(round(&mut spec).await, "|");
    assert_eq!(round(&mut spec).await, "|");
}
