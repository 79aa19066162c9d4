//! MessagePack values of unknown shape, and their way to a type and back.
//!
//! `rmpv::ext::from_value` reads enums by position only, while everything on the
//! bus is named; so both ways go through the bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value as the type that it stands for.
///
/// # Errors
/// When it does not fit.
pub fn from_value<T: DeserializeOwned>(value: &rmpv::Value) -> Result<T, rmp_serde::decode::Error> {
    let mut bytes = Vec::with_capacity(512);
    // Writing to memory does not fail.
    rmpv::encode::write_value(&mut bytes, value)
        .map_err(|error| rmp_serde::decode::Error::Syntax(error.to_string()))?;
    rmp_serde::from_slice(&bytes)
}

/// Anything as a value, exactly as the encoder writes it.
///
/// # Errors
/// When it cannot be written as MessagePack, which no body of this crate does.
pub fn to_value<T: Serialize>(value: &T) -> Result<rmpv::Value, String> {
    let bytes = rmp_serde::to_vec_named(value).map_err(|error| error.to_string())?;
    rmpv::decode::read_value(&mut bytes.as_slice()).map_err(|error| error.to_string())
}
