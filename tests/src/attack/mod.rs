//! What attacks on the real daemons need: a ZeroMQ peer that can lie, a victim
//! that is measured, and honest clients that must notice nothing.
//!
//! | module | what it holds |
//! |---|---|
//! | [`zmtp`] | ZMTP 3.1 by hand over a Unix socket: any bytes, any lengths |
//! | [`victim`] | a bridge, its memory, files and log |
//! | [`honest`] | a caller and a callee that call all the time |
//! | [`pack`] | MessagePack by hand, lies included |
//! | [`service`] | what a service says and hears over a raw connection |
//! | [`bounds`] | what an attack may cost |
//! | [`random`] | bytes that are the same in each run |

pub mod bounds;
pub mod honest;
pub mod pack;
pub mod random;
pub mod service;
pub mod victim;
pub mod zmtp;

pub use honest::Pair;
pub use random::Random;
pub use victim::Victim;
pub use zmtp::Raw;
