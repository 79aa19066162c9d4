//! Benchmarks: spawn and RPC latency.
