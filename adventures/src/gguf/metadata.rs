//! The key-value part of a GGUF file.

use super::cursor::Cursor;
use super::source::Source;
use crate::error::{Error, Result, invalid};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The type of a metadata value, by the number that files carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        use Kind::{Array, Bool, F32, F64, I8, I16, I32, I64, Str, U8, U16, U32, U64};
        [U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64].get(number as usize).copied()
    }

    /// The fewest bytes that one value takes.
    pub(super) fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 12,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

/// Where a value lies in the file. Values are decoded when asked for: an array of a million bytes costs no memory here.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    Scalar(Kind, Range<usize>),
    Array { element: Kind, len: usize, bytes: Range<usize> },
}

/// A metadata value, borrowed from the file.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// `u8`, `u16`, `u32` and `u64`.
    Unsigned(u64),
    /// `i8`, `i16`, `i32` and `i64`.
    Signed(i64),
    /// `f32` and `f64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// `string`; bytes, since the format does not promise UTF-8.
    Str(&'a [u8]),
    /// Values of one type.
    Array(Array<'a>),
}

/// An array of metadata, read as it is walked.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    element: Kind,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let element = self.element;
        let mut cursor = Cursor::new(self.bytes);
        (0..self.len).map(move |_| decode(&mut cursor, element))
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "array of {} {}", self.len, self.element)
    }
}

/// The next value; every value has been walked once when the file was opened.
fn decode<'a>(cursor: &mut Cursor<'a>, kind: Kind) -> Value<'a> {
    read_value(cursor, kind).expect("values are checked when the file is opened; this is a bug")
}

fn read_value<'a>(cursor: &mut Cursor<'a>, kind: Kind) -> Result<Value<'a>> {
    Ok(match kind {
        Kind::U8 => Value::Unsigned(u64::from(cursor.array::<1>()?[0])),
        Kind::I8 => Value::Signed(i64::from(i8::from_le_bytes(cursor.array()?))),
        Kind::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(cursor.array()?))),
        Kind::I16 => Value::Signed(i64::from(i16::from_le_bytes(cursor.array()?))),
        Kind::U32 => Value::Unsigned(u64::from(cursor.u32()?)),
        Kind::I32 => Value::Signed(i64::from(i32::from_le_bytes(cursor.array()?))),
        Kind::F32 => Value::Float(f64::from(f32::from_le_bytes(cursor.array()?))),
        Kind::Bool => Value::Bool(cursor.array::<1>()?[0] != 0),
        Kind::Str => Value::Str(cursor.string()?),
        Kind::U64 => Value::Unsigned(cursor.u64()?),
        Kind::I64 => Value::Signed(i64::from_le_bytes(cursor.array()?)),
        Kind::F64 => Value::Float(f64::from_le_bytes(cursor.array()?)),
        Kind::Array => {
            let (element, len) = cursor.array_header()?;
            let start = cursor.position();
            for _ in 0..len {
                read_value(cursor, element)?;
            }
            Value::Array(Array { element, len, bytes: cursor.since(start) })
        }
    })
}

impl Value<'_> {
    fn describe(self) -> String {
        match self {
            Self::Unsigned(v) => format!("the integer {v}"),
            Self::Signed(v) => format!("the integer {v}"),
            Self::Float(v) => format!("the number {v}"),
            Self::Bool(v) => format!("the boolean {v}"),
            Self::Str(v) => {
                let text: String = String::from_utf8_lossy(v).chars().take(40).collect();
                format!("the string {text:?}")
            }
            Self::Array(v) => format!("an {v:?}"),
        }
    }
}

/// A Rust type that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// What is asked for, with its article, as error messages say it.
    const EXPECTED: &'static str;
    /// Returns the value as this type, or `None` where it is another or does not fit.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

macro_rules! integer {
    ($($type:ty, $expected:literal);*) => { $(
        impl FromValue<'_> for $type {
            const EXPECTED: &'static str = $expected;
            fn from_value(value: Value<'_>) -> Option<Self> {
                match value {
                    Value::Unsigned(v) => v.try_into().ok(),
                    Value::Signed(v) => v.try_into().ok(),
                    _ => None,
                }
            }
        }
    )* };
}
integer!(u32, "an unsigned 32-bit integer"; u64, "an unsigned 64-bit integer"; i32, "a 32-bit integer"; usize, "an unsigned integer");

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "a number";
    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::Float(v) = value { Some(v as Self) } else { None }
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "a boolean";
    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::Bool(v) = value { Some(v) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a string in UTF-8";
    fn from_value(value: Value<'a>) -> Option<Self> {
        if let Value::Str(v) = value { std::str::from_utf8(v).ok() } else { None }
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    const EXPECTED: &'static str = "an array";
    fn from_value(value: Value<'a>) -> Option<Self> {
        if let Value::Array(v) = value { Some(v) } else { None }
    }
}

/// What a GGUF file says about itself, by key.
pub struct Metadata {
    source: Arc<Source>,
    slots: HashMap<String, Slot>,
}

impl Metadata {
    pub(super) fn new(source: Arc<Source>, slots: HashMap<String, Slot>) -> Self {
        Self { source, slots }
    }

    /// Returns the keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// Returns the value of `key`, whatever its type.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        Some(match self.slots.get(key)? {
            Slot::Scalar(kind, range) => decode(&mut Cursor::new(&self.source.bytes()[range.clone()]), *kind),
            Slot::Array { element, len, bytes } => {
                Value::Array(Array { element: *element, len: *len, bytes: &self.source.bytes()[bytes.clone()] })
            }
        })
    }

    /// Returns the value of `key` as `T`, `None` where the file has no such key.
    ///
    /// A value of another type is an error that names the key and what was found.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        self.value(key).map(|value| self.convert(key, value)).transpose()
    }

    /// Returns the value of `key` as `T`; a missing key is an error that names it.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?
            .ok_or_else(|| Error::Invalid(format!("{}: metadata key {key:?} is missing", self.source.name())))
    }

    /// Returns the string at `key`.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.get(key)
    }

    /// Returns the integer at `key`, whatever its width, if it fits.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.get(key)
    }

    /// Returns the number at `key`.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.get(key)
    }

    /// Returns the boolean at `key`.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.get(key)
    }

    /// Returns the array at `key`, each element as `T`.
    pub fn list<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Vec<T>> {
        let array: Array<'a> = self.get(key)?;
        let element = |(i, value)| match T::from_value(value) {
            Some(element) => Ok(element),
            // Named only where it is wrong: there may be a million.
            None => self.convert(&format!("{key}[{i}]"), value),
        };
        array.iter().enumerate().map(element).collect()
    }

    fn convert<'a, T: FromValue<'a>>(&self, key: &str, value: Value<'a>) -> Result<T> {
        match T::from_value(value) {
            Some(value) => Ok(value),
            None => invalid!(
                "{}: metadata key {key:?} must be {}, it is {}",
                self.source.name(),
                T::EXPECTED,
                value.describe()
            ),
        }
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys: Vec<_> = self.keys().collect();
        keys.sort_unstable();
        f.debug_map().entries(keys.into_iter().map(|key| (key, self.value(key)))).finish()
    }
}
