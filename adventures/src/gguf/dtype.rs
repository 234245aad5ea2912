//! How the numbers of a GGUF tensor are stored.

use std::fmt;

/// A storage type of ggml, by the number that files carry.
///
/// Follows `enum ggml_type` and the block structs of ggml's `ggml-common.h`.
#[allow(missing_docs, non_camel_case_types, reason = "the variants are ggml's own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

use GgmlType as T;

/// Number in the file, type, weights per block, bytes per block.
const TABLE: [(u32, GgmlType, usize, usize); 32] = [
    (0, T::F32, 1, 4),
    (1, T::F16, 1, 2),
    (2, T::Q4_0, 32, 18),
    (3, T::Q4_1, 32, 20),
    (6, T::Q5_0, 32, 22),
    (7, T::Q5_1, 32, 24),
    (8, T::Q8_0, 32, 34),
    (9, T::Q8_1, 32, 36),
    (10, T::Q2_K, 256, 84),
    (11, T::Q3_K, 256, 110),
    (12, T::Q4_K, 256, 144),
    (13, T::Q5_K, 256, 176),
    (14, T::Q6_K, 256, 210),
    (15, T::Q8_K, 256, 292),
    (16, T::IQ2_XXS, 256, 66),
    (17, T::IQ2_XS, 256, 74),
    (18, T::IQ3_XXS, 256, 98),
    (19, T::IQ1_S, 256, 50),
    (20, T::IQ4_NL, 32, 18),
    (21, T::IQ3_S, 256, 110),
    (22, T::IQ2_S, 256, 82),
    (23, T::IQ4_XS, 256, 136),
    (24, T::I8, 1, 1),
    (25, T::I16, 1, 2),
    (26, T::I32, 1, 4),
    (27, T::I64, 1, 8),
    (28, T::F64, 1, 8),
    (29, T::IQ1_M, 256, 56),
    (30, T::BF16, 1, 2),
    (34, T::TQ1_0, 256, 54),
    (35, T::TQ2_0, 256, 66),
    (39, T::MXFP4, 32, 17),
];

impl GgmlType {
    /// Returns the type with this number in files, if it is known here.
    pub fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.0 == number).map(|row| row.1)
    }

    /// Returns the number that stands for this type in files.
    pub fn number(self) -> u32 {
        self.row().0
    }

    /// Returns how many weights one block holds; a tensor's first dimension is a multiple of it.
    pub fn block_size(self) -> usize {
        self.row().2
    }

    /// Returns how many bytes one block takes.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    fn row(self) -> &'static (u32, Self, usize, usize) {
        TABLE.iter().find(|row| row.1 == self).expect("every type has a row; this is a bug")
    }
}

/// ggml's own name, such as `Q4_K`.
impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
