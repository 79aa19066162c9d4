//! One process of an RPC benchmark: a caller, a callee, or one side of a floor.
//!
//! ```text
//! rpc-peer unix-echo PATH                    answers on a Unix socket
//! rpc-peer unix-caller PATH                  its caller
//! rpc-peer router-echo PATH                  a bare ROUTER that answers itself
//! rpc-peer router-between PATH               a bare ROUTER that passes on
//! rpc-peer dealer-echo PATH                  what it passes on to
//! rpc-peer dealer-caller PATH NUMBER         caller of either ROUTER
//! rpc-peer callee SOCKET INSTANCE TOKEN      the client library, serving
//! rpc-peer caller SOCKET INSTANCE TOKEN SERVICE   the client library, calling
//! rpc-peer direct-caller SOCKET INSTANCE TOKEN SERVICE   without the bridge in between
//! ```
//!
//! Prints `ready`. Callers then read `CALLS IN_FLIGHT BYTES` from standard
//! input and answer `ELAPSED P50 P99`, in nanoseconds. All end with their input.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use blackhole_benches::bare;
use blackhole_benches::peers::Round;
use blackhole_benches::runtime;
use blackhole_bus_schema::rpc::{Client, ConnectOptions, Direct, Methods};
use bytes::Bytes;
use omq_tokio::{IdentitySocket, Message, Socket, SocketType};
use tokio::sync::mpsc;

const BUDGET: Duration = Duration::from_secs(30);
/// Bytes of a request's header on the way through the bridge, for the floors.
const HEADER: usize = 56;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["unix-echo", path] => unix_echo(Path::new(path)),
        ["unix-caller", path] => unix_caller(Path::new(path)),
        ["router-echo", path] => run(until_the_end(router_echo((*path).to_owned()))),
        ["router-between", path] => run(until_the_end(router_between((*path).to_owned()))),
        ["dealer-echo", path] => run(until_the_end(dealer_echo((*path).to_owned()))),
        ["dealer-caller", path, number] => {
            let number = number.parse().unwrap();
            run(dealer_caller((*path).to_owned(), number));
        }
        ["callee", socket, instance, token] => {
            run(until_the_end(callee(options(socket, instance, token))));
        }
        ["caller", socket, instance, token, service] => {
            run(caller(
                options(socket, instance, token),
                (*service).to_owned(),
                false,
            ));
        }
        ["direct-caller", socket, instance, token, service] => {
            run(caller(
                options(socket, instance, token),
                (*service).to_owned(),
                true,
            ));
        }
        _ => {
            eprintln!("rpc-peer: started by the benchmarks");
            std::process::exit(2);
        }
    }
}

fn options(socket: &str, instance: &str, token: &str) -> ConnectOptions {
    ConnectOptions {
        socket: socket.into(),
        instance: instance.parse().unwrap(),
        token: token.to_owned(),
    }
}

fn ready() {
    println!("ready");
}

fn answer(elapsed: Duration, mut took: Vec<u64>) {
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or(0);
    println!("{} {} {}", elapsed.as_nanos(), at(50), at(99));
}

/// The rounds asked for, read by a thread of its own: the runtime goes on
/// answering heartbeats between them.
fn rounds() -> mpsc::Receiver<Round> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let round = line.unwrap().parse().unwrap();
            if sender.blocking_send(round).is_err() {
                return;
            }
        }
    });
    receiver
}

/// In a task of its own, as services have their work: the future that a runtime
/// blocks on costs one more look at all descriptors whenever a task wakes it.
fn run(work: impl Future<Output = ()> + Send + 'static) {
    runtime().block_on(async { tokio::spawn(work).await.unwrap() });
}

async fn until_the_end(work: impl Future<Output = ()>) {
    let mut input = rounds();
    tokio::select! {
        () = work => {}
        _ = input.recv() => {}
    }
}

// A whole message is read before it is answered, as any user of messages does.

fn unix_echo(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    ready();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            std::thread::spawn(move || {
                let mut message = vec![0; 4];
                while stream.read_exact(&mut message[..4]).is_ok() {
                    let bytes = u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize;
                    message.resize(4 + bytes, 0);
                    stream.read_exact(&mut message[4..]).unwrap();
                    stream.write_all(&message).unwrap();
                }
            });
        }
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn unix_caller(path: &Path) {
    let mut stream = UnixStream::connect(path).unwrap();
    ready();
    for line in std::io::stdin().lock().lines() {
        let round: Round = line.unwrap().parse().unwrap();
        let mut message = vec![7; 4 + round.bytes];
        message[..4].copy_from_slice(&u32::try_from(round.bytes).unwrap().to_ne_bytes());
        let mut took = Vec::with_capacity(round.calls);
        let begin = Instant::now();
        for _ in 0..round.calls {
            let sent = Instant::now();
            stream.write_all(&message).unwrap();
            stream.read_exact(&mut message).unwrap();
            took.push(nanos(sent));
        }
        answer(begin.elapsed(), took);
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

async fn bound(path: &str) -> IdentitySocket {
    let socket = Socket::new(SocketType::Router, bare::router());
    socket.bind(format!("ipc://{path}").as_str()).await.unwrap();
    ready();
    IdentitySocket::try_from(socket).unwrap()
}

async fn connected(path: &str, name: &str) -> Socket {
    let socket = Socket::new(SocketType::Dealer, bare::dealer(name));
    socket
        .connect(format!("ipc://{path}").as_str())
        .await
        .unwrap();
    socket
}

async fn router_echo(path: String) {
    let socket = bound(&path).await;
    loop {
        let (identity, message) = socket.recv_from().await.unwrap();
        socket.try_send_to(identity.to_bytes(), message).unwrap();
    }
}

/// Passes on what a caller sends to the callee and back, by the first byte of
/// the header; nothing is read, counted or kept.
async fn router_between(path: String) {
    let socket = bound(&path).await;
    let mut routes: HashMap<u8, Bytes> = HashMap::new();
    loop {
        let (identity, message) = socket.recv_from().await.unwrap();
        let number = *message.part_bytes(0).unwrap().first().unwrap();
        let name = &identity.peer_info().authentication.username;
        let to = match name.as_deref() {
            Some("callee") if number == 0 => {
                routes.insert(0, identity.to_bytes());
                continue;
            }
            Some("callee") => &routes[&number],
            _ => {
                routes.entry(number).or_insert_with(|| identity.to_bytes());
                &routes[&0]
            }
        };
        socket.try_send_to(to, message).unwrap();
    }
}

async fn dealer_echo(path: String) {
    let socket = connected(&path, "callee").await;
    let hello = Message::multipart([Bytes::from_static(&[0; HEADER]), Bytes::new()]);
    socket.send(hello).await.unwrap();
    ready();
    loop {
        let message = socket.recv().await.unwrap();
        socket.send(message).await.unwrap();
    }
}

async fn dealer_caller(path: String, number: u8) {
    let socket = connected(&path, &format!("caller.{number}")).await;
    ready();
    let mut rounds = rounds();
    while let Some(round) = rounds.recv().await {
        let header = Bytes::from(vec![number; HEADER]);
        let payload = Bytes::from(vec![7; round.bytes]);
        let mut took = Vec::with_capacity(round.calls);
        let mut sent = VecDeque::with_capacity(round.in_flight);
        let begin = Instant::now();
        let mut left = round.calls;
        while took.len() < round.calls {
            while left > 0 && sent.len() < round.in_flight {
                left -= 1;
                sent.push_back(Instant::now());
                let message = Message::multipart([header.clone(), payload.clone()]);
                socket.send(message).await.unwrap();
            }
            socket.recv().await.unwrap();
            took.push(nanos(sent.pop_front().unwrap()));
        }
        answer(begin.elapsed(), took);
    }
}

async fn callee(options: ConnectOptions) {
    let client = Client::connect(options).await.unwrap();
    let methods = Methods::new().on("echo", |request| async move { Ok(request.payload) });
    client.serve(methods.direct());
    client.registered(BUDGET).await.unwrap();
    ready();
    std::future::pending::<()>().await;
}

async fn caller(options: ConnectOptions, service: String, direct: bool) {
    let client = Client::connect(options).await.unwrap();
    client.registered(BUDGET).await.unwrap();
    let way = match direct {
        true => Way::Direct(client.direct(&service)),
        false => Way::Bridge(client, service),
    };
    way.echo(Bytes::new()).await;
    ready();
    let mut rounds = rounds();
    while let Some(round) = rounds.recv().await {
        let payload = Bytes::from(vec![7; round.bytes]);
        let begin = Instant::now();
        let mut took = Vec::with_capacity(round.calls);
        if round.in_flight == 1 {
            calls(&way, payload, round.calls, &mut took).await;
        } else {
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0..round.in_flight {
                let way = way.clone();
                let payload = payload.clone();
                let share = (round.calls + number) / round.in_flight;
                tasks.spawn(async move {
                    let mut took = Vec::with_capacity(share);
                    calls(&way, payload, share, &mut took).await;
                    took
                });
            }
            while let Some(share) = tasks.join_next().await {
                took.extend(share.unwrap());
            }
        }
        answer(begin.elapsed(), took);
    }
}

/// How a caller reaches its callee.
#[derive(Clone)]
enum Way {
    Bridge(Client, String),
    Direct(Direct),
}

impl Way {
    async fn echo(&self, payload: Bytes) -> Bytes {
        let answer = match self {
            Self::Bridge(client, service) => client.call(service, "echo", payload, BUDGET).await,
            Self::Direct(direct) => direct.call("echo", payload, BUDGET).await,
        };
        answer.unwrap()
    }
}

async fn calls(way: &Way, payload: Bytes, times: usize, took: &mut Vec<u64>) {
    for _ in 0..times {
        let sent = Instant::now();
        let answer = way.echo(payload.clone()).await;
        assert_eq!(answer.len(), payload.len());
        took.push(nanos(sent));
    }
}
