//! A bounds-checked walk over little-endian bytes.

use super::metadata::Kind;
use crate::error::{Error, Result, invalid};

/// The longest string that a file may hold; tokenizer entries have tens of bytes, chat templates tens of thousands.
const MAX_STRING: u64 = 16 << 20;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// The bytes read since `start`.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.position]
    }

    pub(super) fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        if n > self.remaining() {
            return invalid!(
                "the file ends at byte {}, {n} bytes are needed from byte {}",
                self.bytes.len(),
                self.position
            );
        }
        let start = self.position;
        self.position += n as usize;
        Ok(&self.bytes[start..self.position])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("take returns as many bytes as asked for; this is a bug"))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8]> {
        let at = self.position;
        let len = self.u64()?;
        if len > MAX_STRING {
            return invalid!("the string at byte {at} has {len} bytes, at most {MAX_STRING} are allowed");
        }
        self.take(len)
    }

    /// A string that names something: not empty, at most `max` bytes of UTF-8.
    pub(super) fn name(&mut self, what: &str, max: usize) -> Result<&'a str> {
        let at = self.position;
        let bytes = self.string()?;
        if bytes.is_empty() || bytes.len() > max {
            return invalid!("the {what} at byte {at} has {} bytes, 1 to {max} are allowed", bytes.len());
        }
        std::str::from_utf8(bytes).map_err(|_| Error::Invalid(format!("the {what} at byte {at} is not UTF-8")))
    }

    pub(super) fn kind(&mut self) -> Result<Kind> {
        let number = self.u32()?;
        Kind::from_number(number)
            .ok_or_else(|| Error::Invalid(format!("unknown metadata value type {number}, 0 to 12 are known")))
    }

    /// The element type and length of an array, checked against the bytes that are left.
    pub(super) fn array_header(&mut self) -> Result<(Kind, usize)> {
        let element = self.kind()?;
        let len = self.u64()?;
        match len.checked_mul(element.min_bytes()) {
            Some(bytes) if bytes <= self.remaining() => Ok((element, len as usize)),
            _ => invalid!("an array of {len} {element} does not fit in the {} bytes that are left", self.remaining()),
        }
    }
}
