//! What is shown: pure functions from what the daemons answered to rows,
//! documents and lines. Nothing here reads a clock, a socket or a file.

pub mod changed;
pub mod component;
pub mod config;
pub mod event;
pub mod health;
pub mod keeper;
pub mod log;
pub mod metrics;
pub mod moment;
pub mod names;
pub mod place;
pub mod problem;
pub mod progress;
pub mod service;
mod settings;
pub mod status;
pub mod tap;
pub mod waits;
