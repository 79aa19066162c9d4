//! Benchmarks of Blackhole. Each stands beside its floor, measured in the same
//! run: absolute times of a shared machine say little, their ratio does.
