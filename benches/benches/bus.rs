//! A command's round trip over the bus, beside a bare ping-pong over a Unix socket.
//!
//! Both sides run on threads of their own, each with a current-thread runtime,
//! as the daemons do.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blackhole_benches::runtime;
use blackhole_bus_schema::bus::{Interest, Link, Server};
use blackhole_bus_schema::component::Ping;
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{ClientName, Component};
use criterion::{Criterion, criterion_group, criterion_main};

fn round_trips(c: &mut Criterion) {
    let mut group = c.benchmark_group("round trip");

    let (mut here, mut there) = UnixStream::pair().unwrap();
    let echo = std::thread::spawn(move || {
        let mut buffer = [0_u8; 128];
        while there.read_exact(&mut buffer).is_ok() && there.write_all(&buffer).is_ok() {}
    });
    group.bench_function("floor: unix socket, 128 B", |b| {
        let mut buffer = [7_u8; 128];
        b.iter(|| {
            here.write_all(&buffer).unwrap();
            here.read_exact(&mut buffer).unwrap();
        });
    });
    drop(here);
    echo.join().unwrap();

    let temp = tempfile::tempdir().unwrap();
    let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
    dirs.create().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server_dirs = dirs.clone();
    let server = std::thread::spawn(move || {
        runtime().block_on(async {
            let bound = Server::bind(&server_dirs, Component::Bridge, 1)
                .await
                .unwrap();
            let _ = stopped.await;
            drop(bound);
        });
    });
    let runtime = runtime();
    let link = runtime.block_on(async {
        let client = ClientName::fresh("bench");
        let (link, _) = Link::open(&dirs, client, Component::Bridge, Interest::none())
            .await
            .unwrap();
        link.ready(Duration::from_secs(10)).await.unwrap();
        link
    });
    group.bench_function("a command on the bus", |b| {
        b.iter_custom(|times| {
            runtime.block_on(async {
                let begin = Instant::now();
                for _ in 0..times {
                    link.request(&Ping {}, Duration::from_secs(10))
                        .await
                        .unwrap();
                }
                begin.elapsed()
            })
        });
    });
    group.finish();
    drop(link);
    drop(runtime);
    let _ = stop.send(());
    server.join().unwrap();
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
