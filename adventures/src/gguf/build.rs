//! GGUF files made by hand, for the tests of everything that reads them.

use super::GgmlType;

/// Writes a GGUF v3 file; the fields are public so that a test can make a wrong one.
pub(crate) struct Builder {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&(s.len() as u64).to_le_bytes()[..], s].concat()
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, keys: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    /// Adds a key whose value has this type number and these bytes.
    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub(crate) fn array(self, key: &str, element: u32, values: &[Vec<u8>]) -> Self {
        let head = [&element.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.raw(key, 9, &[head, values.concat()].concat())
    }

    pub(crate) fn strs(self, key: &str, values: &[impl AsRef<[u8]>]) -> Self {
        let values: Vec<_> = values.iter().map(string).collect();
        self.array(key, 8, &values)
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        let values: Vec<_> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.array(key, 6, &values)
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let values: Vec<_> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.array(key, 5, &values)
    }

    /// Adds a tensor with these bytes, at the next aligned offset.
    pub(crate) fn tensor(mut self, name: &str, dtype: GgmlType, shape: &[u64], data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(data);
        self.entry(name, shape, dtype.number(), offset)
    }

    /// Adds an entry to the tensor table, and no data.
    pub(crate) fn entry(mut self, name: &str, shape: &[u64], dtype: u32, offset: u64) -> Self {
        let shape_bytes: Vec<u8> = shape.iter().flat_map(|d| d.to_le_bytes()).collect();
        let head = [string(name), (shape.len() as u32).to_le_bytes().to_vec(), shape_bytes].concat();
        self.tensors.push([&head[..], &dtype.to_le_bytes(), &offset.to_le_bytes()].concat());
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.counted(self.tensors.len() as u64, self.keys.len() as u64)
    }

    /// The file with these counts in its header, whatever follows.
    pub(crate) fn counted(&self, tensors: u64, keys: u64) -> Vec<u8> {
        let mut out = [&b"GGUF"[..], &self.version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        if !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment.max(1)), 0);
        }
        out.extend(&self.data);
        out
    }
}
