//! `blackhole.yaml`: what a person writes, checked, with every default filled in.

mod model;

pub use model::{
    Condition, Config, Dependency, Orchestrator, Priority, RestartMode, RestartPolicy,
    ServiceConfig,
};
