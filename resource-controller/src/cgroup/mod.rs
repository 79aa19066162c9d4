//! Control groups: the only place that knows the kernel's interfaces and the
//! `cgroups-rs` library.
//!
//! ```text
//!   /proc/self/mountinfo, /proc/self/cgroup
//!        │ detect                       one instance's groups
//!        ▼                             ┌────────────────────────┐
//!   CgroupMount, OwnCgroups            │ <base>/<subtree>/web.1 │ ◄─ group: make, remove
//!        │ layout  (+ record: the      └───┬───────────────┬────┘
//!        ▼          earlier bases)         │ apply         │ sample
//!   Layout { trees: mount, base }     write, read back   counters
//!        │ delegate (v2)                   ▼               ▼
//!        └─► subtree_control, leaf    LimitReport       Reading
//! ```
//!
//! | host | groups of an instance | daemons and shims |
//! |---|---|---|
//! | v1 | one below the own cgroup of each controller | stay where they are |
//! | hybrid | the same, and one in the v2 tree for `cgroup.kill` and pressure | stay |
//! | v2 | one, with the controllers passed on to it | leaf `<base>/<subtree>/_control` |
//!
//! [`Engine`] is blocking and has one owner. A call takes well below a
//! millisecond but for one: lowering a memory limit below what is in use makes
//! the kernel reclaim before the write returns. So it runs on a thread of its
//! own, see [`crate::worker`].

pub mod convert;
pub mod detect;
pub mod layout;
pub mod parse;

mod apply;
mod capacity;
mod delegate;
mod engine;
mod file;
mod group;
mod io_effect;
mod outcome;
mod record;
mod sample;

pub use capacity::HostCapacity;
pub use engine::{Engine, Settings};
pub use file::CgroupError;
pub(crate) use file::chain;
pub use outcome::{Prepared, ReleaseError};
pub use sample::Reading;
