//! MessagePack by hand: what no encoder would write can be written as well.

/// A map of these names and values, each already written.
pub fn map(fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0xde];
    bytes.extend_from_slice(&(fields.len() as u16).to_be_bytes());
    for (name, value) in fields {
        bytes.extend(text(name));
        bytes.extend_from_slice(value);
    }
    bytes
}

/// An array of values, each already written.
pub fn array(values: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = announce(0xdd, values.len() as u32);
    for value in values {
        bytes.extend_from_slice(value);
    }
    bytes
}

/// A text.
pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = announce(0xdb, text.len() as u32);
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A number.
pub fn number(number: u64) -> Vec<u8> {
    let mut bytes = vec![0xcf];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes
}

/// Nothing.
pub fn nil() -> Vec<u8> {
    vec![0xc0]
}

/// Only the head of an array (`0xdd`), a map (`0xdf`), a text (`0xdb`) or bytes
/// (`0xc6`) that says it has so many.
pub fn announce(marker: u8, count: u32) -> Vec<u8> {
    let mut bytes = vec![marker];
    bytes.extend_from_slice(&count.to_be_bytes());
    bytes
}

/// Arrays of one in each other, `depth` deep.
pub fn nested(depth: usize) -> Vec<u8> {
    let mut bytes = vec![0x91; depth];
    bytes.push(0xc0);
    bytes
}
