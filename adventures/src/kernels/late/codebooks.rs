//! Product quantization (Jégou, Douze, Schmid 2011, <https://doi.org/10.1109/TPAMI.2010.57>): a code of a byte stands for the
//! levels of a few dimensions that lie side by side.

use super::{LARGEST, ZERO};

/// Codes of a book.
pub(crate) const CODES: usize = 256;
/// The most dimensions of a book.
pub(crate) const DIMS: usize = 4;

/// Books of levels, one for each code of a row. A row begins with the byte of its scale.
#[derive(Debug)]
pub(crate) struct Codebooks {
    /// Where the dimensions of each book begin; the last is where they end.
    starts: Vec<usize>,
    /// Book, code: a level for each dimension, the first in the lowest byte, with [`ZERO`] added.
    entries: Vec<u32>,
    /// The bfloat16 of each byte of a scale.
    scales: Box<[u16; CODES]>,
}

/// Returns how many books vectors of `dim` dimensions have: two and a half bits a dimension, 30 books of 96.
pub(crate) fn count(dim: usize) -> usize {
    (dim * 5).div_ceil(16)
}

impl Codebooks {
    /// `levels` are book after book, `(256, its dimensions)`, -63 to 63; `largest` is what the largest byte of a scale stands for.
    pub(crate) fn new(dim: usize, levels: &[i8], largest: f32) -> Self {
        let starts = starts(dim);
        assert_eq!(levels.len(), dim * CODES, "a level for each code and dimension; this is a bug");
        let mut entries = Vec::with_capacity((starts.len() - 1) * CODES);
        for pair in starts.windows(2) {
            let book = &levels[pair[0] * CODES..pair[1] * CODES];
            for code in book.chunks_exact(pair[1] - pair[0]) {
                let mut bytes = [ZERO as u8; DIMS];
                for (byte, level) in bytes.iter_mut().zip(code) {
                    *byte = (i32::from(*level).clamp(-LARGEST, LARGEST) + ZERO) as u8;
                }
                entries.push(u32::from_le_bytes(bytes));
            }
        }
        let scales = Box::new(std::array::from_fn(|i| half::bf16::from_f32(scale(largest, i as u8)).to_bits()));
        Self { starts, entries, scales }
    }

    /// Puts the levels of `rows` into `levels`, `width` for each and [`DIMS`] more, and their scales into `scales`.
    pub(super) fn expand(&self, rows: &[u8], width: usize, levels: &mut [u8], scales: &mut Vec<u16>) {
        let books = self.starts.len() - 1;
        scales.clear();
        for (t, row) in rows.chunks_exact(1 + books).enumerate() {
            scales.push(self.scales[row[0] as usize]);
            let out = &mut levels[t * width..(t + 1) * width + DIMS];
            let books = self.entries.as_chunks::<CODES>().0.iter().zip(&self.starts);
            // What a book writes beyond its dimensions, the next one overwrites.
            for (code, (book, start)) in row[1..].iter().zip(books) {
                out[*start..start + DIMS].copy_from_slice(&book[*code as usize].to_le_bytes());
            }
        }
    }
}

/// Where the dimensions of each book begin, and where they end.
pub(crate) fn starts(dim: usize) -> Vec<usize> {
    let books = count(dim);
    (0..=books).map(|i| i * dim / books).collect()
}

/// What a byte of a scale stands for: 32 steps for each power of two; 0 is none.
pub(crate) fn scale(largest: f32, byte: u8) -> f32 {
    if byte == 0 { 0.0 } else { largest * ((f32::from(byte) - 255.0) / 32.0).exp2() }
}

/// The byte of the scale nearest to `x`.
pub(crate) fn scale_byte(largest: f32, x: f32) -> u8 {
    if x > 0.0 && largest > 0.0 { ((x / largest).log2() * 32.0 + 255.0).round().clamp(1.0, 255.0) as u8 } else { 0 }
}
