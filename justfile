# The few daily commands; each is also what continuous integration runs.

# Everything that continuous integration does.
ci:
    .ci/run

# All tests.
test:
    cargo nextest run

# Form: formatting, clippy with warnings denied, documentation.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    cargo test --doc --workspace

# Builds everything and brings the self-contained example up.
up:
    cargo build --release
    target/release/blackhole up -c examples/self-contained/blackhole.yaml

# Benchmarks.
bench:
    cargo bench -p blackhole-benches
