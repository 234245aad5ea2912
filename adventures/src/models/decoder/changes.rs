//! What is changed of a checkpoint's matrices when they are loaded: adapters are added, numbers are rounded to blocks.

use super::adapter::Adapter;
use crate::error::{Error, Result, invalid};
use crate::gguf::GgmlType;
use crate::kernels::quant::Matrix;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::collections::HashSet;
use std::path::PathBuf;
use std::str::FromStr;

/// What matrices are rounded to when a checkpoint of safetensors is loaded: ggml's blocks, as llama.cpp makes them.
///
/// Where a row is not whole blocks, another type takes the place, and where it is not whole blocks of 32 either, the matrix
/// stays as it is. Norms and biases always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// 8.5 bits a weight.
    Q8_0,
    /// 4.5 bits a weight; 6.6, as `Q6_K`, in the head, or in the embedding that serves as one. Rows that are not a multiple
    /// of 256 become `Q5_0`, in the head `Q8_0`.
    Q4K,
}

impl Quantize {
    /// Returns `"q8_0"` or `"q4_k"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// Returns the type of a matrix whose rows have `cols` weights; `None` where no block fits.
    fn dtype(self, head: bool, cols: usize) -> Option<GgmlType> {
        let types: &[GgmlType] = match (self, head) {
            (Self::Q8_0, _) => &[GgmlType::Q8_0],
            (Self::Q4K, false) => &[GgmlType::Q4_K, GgmlType::Q5_0],
            (Self::Q4K, true) => &[GgmlType::Q6_K, GgmlType::Q8_0],
        };
        types.iter().copied().find(|dtype| cols.is_multiple_of(dtype.block_size()))
    }
}

impl FromStr for Quantize {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "q8_0" => Ok(Self::Q8_0),
            "q4_k" => Ok(Self::Q4K),
            _ => invalid!("quantize={name:?}: expected \"q8_0\" or \"q4_k\""),
        }
    }
}

/// All that is changed.
#[derive(Default)]
pub(super) struct Changes {
    adapters: Vec<Adapter>,
    quantize: Option<Quantize>,
}

impl Changes {
    pub(super) fn open(adapters: &[PathBuf], quantize: Option<Quantize>) -> Result<Self> {
        let adapters = adapters.iter().map(|dir| Adapter::open(dir)).collect::<Result<_>>()?;
        Ok(Self { adapters, quantize })
    }

    /// Fails where an adapter changes something else than `modules`.
    pub(super) fn check_all_made(&self, modules: &HashSet<String>) -> Result<()> {
        self.adapters.iter().try_for_each(|adapter| adapter.check_all_in(modules))
    }

    /// Returns the type and the bytes of a changed `matrix` of `shape`; `None` where it stays as it is.
    ///
    /// Adapters are added in single precision, and the sums stay so unless they are quantized: what an adapter adds is often
    /// less than what bfloat16 can tell from nothing. Runs on the rayon pool that it is called in.
    pub(super) fn apply(
        &self,
        module: &str,
        head: bool,
        matrix: Matrix<'_>,
        dtype: GgmlType,
        shape: (usize, usize),
    ) -> Result<Option<(GgmlType, Vec<u8>)>> {
        let deltas = self.adapters.iter().filter_map(|adapter| adapter.delta(module, shape).transpose());
        let deltas = deltas.collect::<Result<Vec<_>>>()?;
        let rounded = self.quantize.and_then(|quantize| quantize.dtype(head, shape.1));
        let to = match rounded {
            Some(to) => to,
            None if deltas.is_empty() => return Ok(None),
            None => GgmlType::F32,
        };
        if to == dtype && deltas.is_empty() {
            return Ok(None);
        }
        let cols = shape.1;
        let row_bytes = cols / to.block_size() * to.block_bytes();
        let mut bytes = vec![0; shape.0 * row_bytes];
        // Some rows at a time: a whole matrix in single precision would be the most memory that loading takes.
        bytes.par_chunks_mut(ROWS * row_bytes).enumerate().try_for_each(|(i, bytes)| {
            let mut numbers = vec![0.0; bytes.len() / row_bytes * cols];
            for (row, index) in numbers.chunks_exact_mut(cols).zip(i * ROWS..) {
                matrix.read_row(index, row);
                for delta in &deltas {
                    delta.add(index, row);
                }
                if let Some(j) = row.iter().position(|x| !x.is_finite()) {
                    return invalid!("{module}: its matrix holds {} at row {index}, column {j}", row[j]);
                }
            }
            encode(numbers, to, bytes)
        })?;
        Ok(Some((to, bytes)))
    }
}

/// Rows that are changed at a time.
const ROWS: usize = 32;

/// Writes `numbers`, whole blocks of `dtype`, to `bytes`.
fn encode(numbers: Vec<f32>, dtype: GgmlType, bytes: &mut [u8]) -> Result<()> {
    let dtype = match dtype {
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        _ => {
            for (bytes, x) in bytes.chunks_exact_mut(size_of::<f32>()).zip(numbers) {
                bytes.copy_from_slice(&x.to_le_bytes());
            }
            return Ok(());
        }
    };
    let len = numbers.len();
    let blocks = QTensor::quantize(&Tensor::from_vec(numbers, len, &Device::Cpu)?, dtype)?;
    bytes.copy_from_slice(&blocks.data()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quant::{Product, Scratch, multiply};

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 % 2003) as f32 / 1001.0) - 1.0).collect()
    }

    #[test]
    fn products_are_those_of_candles_dequantized_matrix() {
        for (quantize, head, cols, want) in [
            (Quantize::Q8_0, false, 256, GgmlType::Q8_0),
            (Quantize::Q8_0, true, 96, GgmlType::Q8_0),
            (Quantize::Q4K, false, 512, GgmlType::Q4_K),
            (Quantize::Q4K, false, 96, GgmlType::Q5_0),
            (Quantize::Q4K, true, 256, GgmlType::Q6_K),
            (Quantize::Q4K, true, 96, GgmlType::Q8_0),
        ] {
            let rows = 70;
            let weights = noise(rows * cols, 3);
            let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
            let matrix = Matrix::new(GgmlType::F32, rows, cols, &bytes);
            let changes = Changes { quantize: Some(quantize), ..Changes::default() };
            let changed = changes.apply("m", head, matrix, GgmlType::F32, (rows, cols)).expect("it is rounded");
            let (dtype, bytes) = changed.expect("it is changed");
            assert_eq!(dtype, want);
            let tensor = Tensor::from_vec(weights, (rows, cols), &Device::Cpu).expect("a tensor");
            let candle = match want {
                GgmlType::Q8_0 => GgmlDType::Q8_0,
                GgmlType::Q5_0 => GgmlDType::Q5_0,
                GgmlType::Q4_K => GgmlDType::Q4K,
                _ => GgmlDType::Q6K,
            };
            let reference = QTensor::quantize(&tensor, candle).expect("it is rounded");
            let reference = reference.dequantize(&Device::Cpu).expect("it is read");
            let reference: Vec<Vec<f32>> = reference.to_vec2().expect("f32");
            let x = noise(3 * cols, 11);
            let mut out = vec![0.0; 3 * rows];
            let matrix = Matrix::new(dtype, rows, cols, &bytes);
            multiply(&x, 8, &mut Scratch::default(), &mut [Product { matrix, out: &mut out }]);
            for (t, x) in x.chunks_exact(cols).enumerate() {
                for (r, row) in reference.iter().enumerate() {
                    let want: f32 = row.iter().zip(x).map(|(w, x)| w * x).sum();
                    let got = out[t * rows + r];
                    // The activations are rounded to bytes.
                    assert!((want - got).abs() < 0.004 * cols as f32, "{want:?} {got:?} in {dtype}");
                }
            }
        }
    }

    #[test]
    fn rows_that_are_no_blocks_stay_as_they_are() {
        let bytes = [0; 24 * 4 * 2];
        let matrix = Matrix::new(GgmlType::F32, 2, 24, &bytes);
        let changes = Changes { quantize: Some(Quantize::Q4K), ..Changes::default() };
        assert!(changes.apply("m", false, matrix, GgmlType::F32, (2, 24)).expect("it is left").is_none());
    }

    #[test]
    fn a_number_that_is_none_is_refused_by_its_place() {
        let mut numbers = noise(64, 1);
        numbers[37] = f32::INFINITY;
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let matrix = Matrix::new(GgmlType::F32, 2, 32, &bytes);
        let changes = Changes { quantize: Some(Quantize::Q8_0), ..Changes::default() };
        let error = changes.apply("m", false, matrix, GgmlType::F32, (2, 32)).expect_err("it is refused");
        assert_eq!(error.to_string(), "m: its matrix holds inf at row 1, column 5");
    }
}
