//! The command line of Blackhole: everything a person does, over the bus.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`], [`kill_style`] | flags and commands; signals as kill(1) takes them |
//! | [`cmd`] | the commands, one file each |
//! | [`up`] | `up` and `down`: the daemons' keeper |
//! | [`context`] | directories, configuration, form of output of one call |
//! | [`error`] | what can go wrong, exit codes, what to do about it |
//! | [`client`], [`watch`] | questions over the bus; a live picture of the whole |
//! | [`direct`] | start and stop without a supervisor |
//! | [`offline`], [`offline_logs`] | break-glass: records, shims' sockets and log files |
//! | [`notes`] | what is right in a configuration and probably not meant |
//! | [`access`] | whether this user may look at the deployment |
//! | [`edited`] | whether the configuration was changed since the daemons were started |
//! | [`host`], [`listeners`] | what the host offers, who listens on it |
//! | [`view`] | what is shown: pure functions over the daemons' answers |
//! | [`human`], [`out`], [`table`] | numbers for people, the two outputs, tables |

pub mod access;
pub mod args;
pub mod client;
pub mod cmd;
pub mod context;
pub mod direct;
pub mod edited;
pub mod error;
pub mod host;
pub mod human;
pub mod keeper_file;
pub mod kill_style;
pub mod listeners;
pub mod notes;
pub mod offline;
pub mod offline_logs;
pub mod out;
mod sys;
pub mod table;
pub mod up;
pub mod view;
pub mod watch;
