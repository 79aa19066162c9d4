//! MessagePack values that are kept as they are written, until somebody knows their type.
//!
//! An envelope is decoded before it is known what its body stands for. A tree of values
//! would be built and taken apart again for every message; this is one piece of memory.

use std::fmt;

use rmp::encode::{self, ByteBuf};
use serde::de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One MessagePack value, as bytes. Always a whole one, nested no deeper than what
/// it was taken out of was allowed to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw(Vec<u8>);

/// Nil, see the MessagePack specification
/// (<https://github.com/msgpack/msgpack/blob/master/spec.md>).
const NIL: u8 = 0xc0;

/// A map without entries.
const EMPTY: u8 = 0x80;

impl Raw {
    /// Nil.
    pub fn nil() -> Self {
        Self(vec![NIL])
    }

    /// Anything, as the bus writes it: with named fields.
    ///
    /// # Errors
    /// When it cannot be written as MessagePack, which no body of this crate does.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, rmp_serde::encode::Error> {
        rmp_serde::to_vec_named(value).map(Self)
    }

    /// The first value of `bytes` as it stands there, without a look into it, and how many bytes
    /// it has. `None` when it is not whole, or nests deeper than `depth`.
    pub(crate) fn first(bytes: &[u8], depth: usize) -> Option<(Self, usize)> {
        let length = extent(bytes, depth)?;
        Some((Self(bytes.get(..length)?.to_vec()), length))
    }

    /// Whether it is nil, or was left out.
    pub fn is_nil(&self) -> bool {
        self.0 == [NIL]
    }

    /// The value as the type that it stands for.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, rmp_serde::decode::Error> {
        rmp_serde::from_slice(&self.0)
    }

    /// The same, where nil stands for a map without entries: a body that is left out.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn parse_fields<T: DeserializeOwned>(&self) -> Result<T, rmp_serde::decode::Error> {
        match self.is_nil() {
            true => rmp_serde::from_slice(&[EMPTY]),
            false => self.parse(),
        }
    }

    /// The value as a tree, for whoever shows what he does not know.
    pub fn tree(&self) -> rmpv::Value {
        // It is a whole value: there is nothing that could fail.
        rmpv::decode::read_value(&mut self.0.as_slice()).unwrap_or(rmpv::Value::Nil)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// How many bytes the first value of `bytes` has. `None` when it is not whole, is none, or nests
/// deeper than `depth`; looks at each head once and at no content.
pub(crate) fn extent(bytes: &[u8], depth: usize) -> Option<usize> {
    let number = |at: usize, width: usize| {
        let digits = bytes.get(at..at.checked_add(width)?)?;
        let shift = |sum: usize, digit: &u8| sum << 8 | usize::from(*digit);
        Some(digits.iter().fold(0, shift))
    };
    // Values that are still to come at each depth, the innermost last.
    let mut open: Vec<usize> = Vec::with_capacity(depth.min(16));
    let mut at = 0_usize;
    loop {
        let marker = *bytes.get(at)?;
        at += 1;
        let low = usize::from(marker);
        // What follows the marker: bytes of its own, then values.
        let (own, values) = match marker {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (0, 0),
            0x80..=0x8f => (0, (low & 0x0f) * 2),
            0x90..=0x9f => (0, low & 0x0f),
            0xa0..=0xbf => (low & 0x1f, 0),
            0xc1 => return None,
            0xc4 | 0xd9 => (number(at, 1)?.checked_add(1)?, 0),
            0xc5 | 0xda => (number(at, 2)?.checked_add(2)?, 0),
            0xc6 | 0xdb => (number(at, 4)?.checked_add(4)?, 0),
            // An extension has its type beside its length.
            0xc7 => (number(at, 1)?.checked_add(2)?, 0),
            0xc8 => (number(at, 2)?.checked_add(3)?, 0),
            0xc9 => (number(at, 4)?.checked_add(5)?, 0),
            0xca | 0xce | 0xd2 => (4, 0),
            0xcb | 0xcf | 0xd3 => (8, 0),
            0xcc | 0xd0 => (1, 0),
            0xcd | 0xd1 => (2, 0),
            0xd4 => (2, 0),
            0xd5 => (3, 0),
            0xd6 => (5, 0),
            0xd7 => (9, 0),
            0xd8 => (17, 0),
            0xdc => (2, number(at, 2)?),
            0xdd => (4, number(at, 4)?),
            0xde => (2, number(at, 2)?.checked_mul(2)?),
            0xdf => (4, number(at, 4)?.checked_mul(2)?),
        };
        at = at.checked_add(own).filter(|at| *at <= bytes.len())?;
        // Each value has a byte at least: a length that lies is found out here.
        if values > bytes.len().saturating_sub(at) {
            return None;
        }
        let holds_values = matches!(marker, 0x80..=0x9f | 0xdc..=0xdf);
        if holds_values && open.len() >= depth {
            return None;
        }
        if values > 0 {
            open.push(values);
            continue;
        }
        loop {
            match open.last_mut() {
                None => return Some(at),
                Some(left) => {
                    *left -= 1;
                    match *left {
                        0 => open.pop(),
                        _ => break,
                    };
                }
            }
        }
    }
}

impl From<&rmpv::Value> for Raw {
    fn from(value: &rmpv::Value) -> Self {
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        match rmpv::encode::write_value(&mut bytes, value) {
            Ok(()) => Self(bytes),
            Err(_) => Self::nil(),
        }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self::nil()
    }
}

/// As the value is read: `{"a": 1}`.
impl fmt::Debug for Raw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.tree(), formatter)
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tree().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut out = ByteBuf::with_capacity(256);
        Copy(&mut out).deserialize(deserializer)?;
        Ok(Self(out.into_vec()))
    }
}

/// Writes what it is shown to the end of a buffer.
struct Copy<'a>(&'a mut ByteBuf);

impl<'de> DeserializeSeed<'de> for Copy<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// What writing to memory comes to: it does not fail.
fn written<T, E: de::Error>(result: Result<T, impl fmt::Display>) -> Result<(), E> {
    result.map(drop).map_err(E::custom)
}

/// A length as MessagePack has it.
fn length<E: de::Error>(count: usize) -> Result<u32, E> {
    u32::try_from(count).map_err(|_| E::custom("a value of more than 4 GiB"))
}

impl Copy<'_> {
    /// Puts the head of an array or map in front of what stands there from `start`
    /// on, where it was not known how many there would be.
    fn head<E: de::Error>(
        self,
        start: usize,
        count: usize,
        write: impl Fn(&mut ByteBuf, u32) -> Result<rmp::Marker, String>,
    ) -> Result<(), E> {
        let mut head = ByteBuf::new();
        written(write(&mut head, length(count)?))?;
        let bytes = self.0.as_mut_vec();
        let items = bytes.split_off(start);
        bytes.extend_from_slice(head.as_slice());
        bytes.extend_from_slice(&items);
        Ok(())
    }
}

fn array(out: &mut ByteBuf, count: u32) -> Result<rmp::Marker, String> {
    encode::write_array_len(out, count).map_err(|error| error.to_string())
}

fn map(out: &mut ByteBuf, count: u32) -> Result<rmp::Marker, String> {
    encode::write_map_len(out, count).map_err(|error| error.to_string())
}

impl<'de> Visitor<'de> for Copy<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a MessagePack value")
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        written(encode::write_nil(self.0).map_err(|error| error.to_string()))
    }
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.visit_unit()
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        written(encode::write_bool(self.0, value).map_err(|error| error.to_string()))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        written(encode::write_uint(self.0, value).map_err(|error| error.to_string()))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        written(encode::write_sint(self.0, value).map_err(|error| error.to_string()))
    }
    fn visit_f32<E: de::Error>(self, value: f32) -> Result<(), E> {
        written(encode::write_f32(self.0, value).map_err(|error| error.to_string()))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        written(encode::write_f64(self.0, value).map_err(|error| error.to_string()))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        length::<E>(value.len())?;
        written(encode::write_str(self.0, value).map_err(|error| error.to_string()))
    }
    fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<(), E> {
        length::<E>(value.len())?;
        written(encode::write_bin(self.0, value).map_err(|error| error.to_string()))
    }

    /// What the decoder shows an extension as.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let (kind, bytes) = <(i8, serde_bytes::ByteBuf)>::deserialize(deserializer)?;
        let count = length(bytes.len())?;
        let head = encode::write_ext_meta(self.0, count, kind);
        written::<_, D::Error>(head.map_err(|error| error.to_string()))?;
        self.0.as_mut_vec().extend_from_slice(&bytes);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let start = self.0.as_slice().len();
        let hint = items.size_hint();
        if let Some(hint) = hint {
            written::<_, A::Error>(array(self.0, length(hint)?))?;
        }
        let mut count = 0_usize;
        while items.next_element_seed(Copy(self.0))?.is_some() {
            count += 1;
        }
        match hint {
            Some(hint) if hint == count => Ok(()),
            Some(_) => Err(de::Error::custom("an array of another length than it says")),
            None => self.head(start, count, array),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let start = self.0.as_slice().len();
        let hint = entries.size_hint();
        if let Some(hint) = hint {
            written::<_, A::Error>(map(self.0, length(hint)?))?;
        }
        let mut count = 0_usize;
        while entries.next_key_seed(Copy(self.0))?.is_some() {
            entries.next_value_seed(Copy(self.0))?;
            count += 1;
        }
        match hint {
            Some(hint) if hint == count => Ok(()),
            Some(_) => Err(de::Error::custom("a map of another length than it says")),
            None => self.head(start, count, map),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rmpv::Value;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f32>().prop_map(Value::F32),
            any::<f64>().prop_map(Value::F64),
            ".{0,40}".prop_map(Value::from),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Binary),
            (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(kind, bytes)| Value::Ext(kind, bytes)),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..20).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_is_taken_over_as_it_is(value in any_value()) {
            let written = Raw::from(&value);
            let read: Raw = rmp_serde::from_slice(written.bytes()).unwrap();
            prop_assert_eq!(read.bytes(), written.bytes());
        }
    }

    proptest! {
        #[test]
        fn the_first_value_is_found_without_a_look_into_it(
            value in any_value(),
            behind in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let written = Raw::from(&value);
            let bytes = [written.bytes(), &behind].concat();
            let (first, length) = Raw::first(&bytes, 64).unwrap();
            prop_assert_eq!(length, written.bytes().len());
            prop_assert_eq!(first.bytes(), written.bytes());
            prop_assert!(Raw::first(&written.bytes()[..length - 1], 64).is_none());
        }

        #[test]
        fn whatever_is_taken_for_a_value_the_decoder_takes_too(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut rest = bytes.as_slice();
            let decoded = rmpv::decode::read_value(&mut rest);
            match extent(&bytes, 1024) {
                Some(length) => {
                    prop_assert!(decoded.is_ok());
                    prop_assert_eq!(length, bytes.len() - rest.len());
                }
                // The decoder reads the byte that the specification never uses as nil.
                None => prop_assert!(decoded.is_err() || bytes.contains(&0xc1)),
            }
        }
    }

    #[test]
    fn nesting_has_a_limit_and_lengths_that_lie_are_found_out() {
        for depth in 0..6 {
            let mut bytes = vec![0x91; depth];
            bytes.push(NIL);
            assert_eq!(extent(&bytes, depth), Some(depth + 1));
            if let Some(less) = depth.checked_sub(1) {
                assert_eq!(extent(&bytes, less), None);
            }
        }
        for lie in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
            &[0xdf, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xc6, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x93, 1, 2],
            &[0xda, 0x01],
            &[0xc1],
            &[],
        ] {
            assert_eq!(extent(lie, 64), None, "{lie:x?}");
        }
    }

    #[test]
    fn half_a_value_and_one_that_lies_about_its_length_are_refused() {
        for bytes in [
            &[0x92, 0x01][..],
            &[0xdd, 0xff, 0xff, 0xff, 0xff],
            &[0xdf, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0xdb, 0xff, 0xff, 0xff, 0xff],
            &[],
        ] {
            assert!(rmp_serde::from_slice::<Raw>(bytes).is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn a_body_that_is_left_out_has_no_fields() {
        #[derive(Debug, Deserialize)]
        struct Fields {
            #[serde(default)]
            one: Option<u8>,
        }
        assert_eq!(Raw::nil().parse_fields::<Fields>().unwrap().one, None);
        assert!(Raw::nil().parse::<Fields>().is_err());
        let one = Raw::of(&std::collections::BTreeMap::from([("one", 1)])).unwrap();
        assert_eq!(one.parse_fields::<Fields>().unwrap().one, Some(1));
    }
}
