//! The command line of Blackhole: everything a person does, over the bus.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | flags and commands |
//! | [`error`] | what can go wrong, exit codes, what to do about it |
//! | [`human`], [`out`], [`table`] | numbers for people, the two outputs, tables |
//! | [`view`] | what is shown: pure functions over the daemons' answers |

pub mod args;
pub mod error;
pub mod human;
pub mod out;
pub mod table;
pub mod view;
