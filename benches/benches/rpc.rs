//! A call between two services through the bridge, beside the same messages over
//! a bare ROUTER and DEALER of the same transport, and beside a Unix socket.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blackhole_benches::{Daemon, runtime};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::rpc::{Client, ConnectOptions, Key, Methods};
use blackhole_bus_schema::transport::rpc::{Dealer, Router};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const SIZES: [usize; 2] = [128, 4096];
const BUDGET: Duration = Duration::from_secs(10);

fn unix_socket(c: &mut Criterion) {
    let mut group = c.benchmark_group("rpc");
    for size in SIZES {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let echo = std::thread::spawn(move || {
            let mut buffer = vec![0; size];
            while there.read_exact(&mut buffer).is_ok() && there.write_all(&buffer).is_ok() {}
        });
        group.bench_function(BenchmarkId::new("floor: unix socket", size), |b| {
            let mut buffer = vec![7; size];
            b.iter(|| {
                here.write_all(&buffer).unwrap();
                here.read_exact(&mut buffer).unwrap();
            });
        });
        drop(here);
        echo.join().unwrap();
    }
}

fn bare(c: &mut Criterion) {
    let mut group = c.benchmark_group("rpc");
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("bare");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router_path = path.clone();
    let router = std::thread::spawn(move || {
        runtime().block_on(async {
            let router = Router::bind(&router_path, |_, _| Some(Bytes::new()))
                .await
                .unwrap();
            let echo = async {
                loop {
                    let message = router.recv().await.unwrap();
                    router
                        .send(message.peer.route.as_ref(), message.header, message.payload)
                        .unwrap();
                }
            };
            tokio::select! {
                () = echo => {}
                _ = stopped => {}
            }
        });
    });
    let runtime = runtime();
    let dealer = runtime.block_on(async {
        let dealer = Dealer::new("bench.1", "x");
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        dealer.connect(&path).await.unwrap();
        dealer
    });
    for size in SIZES {
        let (header, payload) = (Bytes::from_static(&[7; 48]), Bytes::from(vec![7; size]));
        group.bench_function(
            BenchmarkId::new("floor: bare DEALER and ROUTER", size),
            |b| {
                b.iter_custom(|times| {
                    runtime.block_on(async {
                        let begin = Instant::now();
                        for _ in 0..times {
                            dealer.send(header.clone(), payload.clone()).await.unwrap();
                            dealer.recv().await.unwrap();
                        }
                        begin.elapsed()
                    })
                });
            },
        );
    }
    drop(dealer);
    let _ = stop.send(());
    router.join().unwrap();
}

fn through_the_bridge(c: &mut Criterion) {
    let mut group = c.benchmark_group("rpc");
    let temp = tempfile::tempdir().unwrap();
    let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
    dirs.create().unwrap();
    let bridge = Daemon::start("blackhole-bridge", &dirs);
    let key = Key::load_or_create(&dirs).unwrap();
    let options = |name: &str| {
        let instance = name.parse().unwrap();
        let token = key.token(&instance, Generation(1));
        ConnectOptions {
            socket: dirs.rpc_socket(),
            instance,
            token,
        }
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let callee = options("callee.1");
    let server = std::thread::spawn(move || {
        runtime().block_on(async {
            let client = Client::connect(callee).await.unwrap();
            client.serve(Methods::new().on("echo", |request| async move { Ok(request.payload) }));
            client.registered(BUDGET).await.unwrap();
            let _ = stopped.await;
        });
    });
    let runtime = runtime();
    let client = runtime.block_on(async {
        let client = Client::connect(options("caller.1")).await.unwrap();
        client.registered(BUDGET).await.unwrap();
        // The callee registers in its own time.
        while client
            .call("callee", "echo", Bytes::new(), BUDGET)
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
        client
    });
    for size in SIZES {
        let payload = Bytes::from(vec![7; size]);
        group.bench_function(BenchmarkId::new("a call through the bridge", size), |b| {
            b.iter_custom(|times| {
                runtime.block_on(async {
                    let begin = Instant::now();
                    for _ in 0..times {
                        client
                            .call("callee", "echo", payload.clone(), BUDGET)
                            .await
                            .unwrap();
                    }
                    begin.elapsed()
                })
            });
        });
    }
    drop(client);
    let _ = stop.send(());
    server.join().unwrap();
    drop(bridge);
}

criterion_group!(benches, unix_socket, bare, through_the_bridge);
criterion_main!(benches);
