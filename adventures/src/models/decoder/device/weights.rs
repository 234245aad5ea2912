//! A decoder's matrices on a device: blocks as files hold them, or dense.

use super::super::weights::{self, Linear, Weight};
use super::Place;
use crate::error::{Result, invalid};
use crate::gguf::GgmlType;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// A matrix of rows of weights, or several with rows of the same length, one below the other.
#[derive(Clone)]
pub(super) enum Table {
    /// `(rows, cols)`.
    Dense(Tensor),
    /// Blocks, and the type of their products.
    Blocks(Arc<QTensor>, DType),
}

impl Table {
    /// Returns matrices that are stored alike as one.
    pub(super) fn new(parts: &[&Weight], place: &Place) -> Result<Self> {
        let [first, ..] = parts else { return invalid!("a matrix of no parts; this is a bug") };
        let (dtype, shape) = (first.stored().0, (parts.iter().map(|part| part.rows).sum::<usize>(), first.cols));
        let bytes = match parts {
            [part] => Cow::Borrowed(part.stored().1),
            _ => Cow::Owned(parts.iter().flat_map(|part| part.stored().1).copied().collect()),
        };
        let blocks = |dtype, bytes: &[u8]| -> Result<Self> {
            // Candle asserts that blocks lie where processors like them; files do not promise it.
            let mut aligned = vec![0_u64; bytes.len().div_ceil(size_of::<u64>())];
            let aligned = &mut bytemuck::cast_slice_mut(&mut aligned)[..bytes.len()];
            aligned.copy_from_slice(bytes);
            let storage = QStorage::from_data(Cow::Borrowed(aligned), &place.device, dtype)?;
            Ok(Self::Blocks(Arc::new(QTensor::new(storage, shape)?), place.products))
        };
        let dense = |dtype| -> Result<Self> {
            let table = Tensor::from_raw_buffer(&bytes, dtype, &[shape.0, shape.1], &place.device)?;
            Ok(Self::Dense(table.to_dtype(place.products)?))
        };
        match dtype {
            GgmlType::F32 => dense(DType::F32),
            GgmlType::F16 => dense(DType::F16),
            GgmlType::BF16 => dense(DType::BF16),
            GgmlType::Q4_0 => blocks(GgmlDType::Q4_0, &bytes),
            GgmlType::Q4_1 => blocks(GgmlDType::Q4_1, &bytes),
            GgmlType::Q5_0 => blocks(GgmlDType::Q5_0, &bytes),
            GgmlType::Q5_1 => blocks(GgmlDType::Q5_1, &bytes),
            GgmlType::Q8_0 => blocks(GgmlDType::Q8_0, &bytes),
            GgmlType::Q2_K => blocks(GgmlDType::Q2K, &bytes),
            GgmlType::Q3_K => blocks(GgmlDType::Q3K, &bytes),
            GgmlType::Q4_K => blocks(GgmlDType::Q4K, &bytes),
            GgmlType::Q5_K => blocks(GgmlDType::Q5K, &bytes),
            GgmlType::Q6_K => blocks(GgmlDType::Q6K, &bytes),
            // Candle has no products with the others: IQ4_NL and IQ4_XS. Bytes tell their sixteen values apart.
            _ => blocks(GgmlDType::Q8_0, &rounded(parts)?),
        }
    }

    /// Returns the products of the rows of `x` with the rows of the table, `(rows of x, rows)`.
    pub(super) fn multiply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(table) => x.matmul(&table.t()?),
            // Their kernels read single precision, and write it.
            Self::Blocks(table, dtype) => {
                x.to_dtype(DType::F32)?.contiguous()?.apply_op1_no_bwd(table.as_ref())?.to_dtype(*dtype)
            }
        }
    }

    /// Returns the rows of `ids`, in the precision that they are stored in.
    pub(super) fn rows(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(table) => table.index_select(ids, 0),
            Self::Blocks(table, _) => table.embedding(ids),
        }
    }
}

/// Returns the weights rounded to bytes, in blocks of 32 with a scale.
fn rounded(parts: &[&Weight]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in parts {
        let mut row = vec![0.0; part.cols];
        for i in 0..part.rows {
            part.matrix().read_row(i, &mut row);
            let row = Tensor::from_slice(&row, row.len(), &Device::Cpu)?;
            bytes.extend_from_slice(&QTensor::quantize(&row, GgmlDType::Q8_0)?.data()?);
        }
    }
    Ok(bytes)
}

/// Matrices that the same rows are multiplied with: one table where they are stored alike, and one product.
pub(super) struct Products<const N: usize> {
    tables: Vec<Table>,
    biases: Vec<Option<Tensor>>,
    widths: [usize; N],
}

impl<const N: usize> Products<N> {
    fn new(parts: [(&Weight, Option<&[f32]>); N], place: &Place) -> Result<Self> {
        let widths = parts.map(|(weight, _)| weight.rows);
        let alike = parts.iter().all(|(weight, _)| weight.stored().0 == parts[0].0.stored().0);
        let groups = if alike { vec![&parts[..]] } else { parts.chunks(1).collect() };
        let (mut tables, mut biases) = (Vec::new(), Vec::new());
        for group in groups {
            let weights: Vec<&Weight> = group.iter().map(|(weight, _)| *weight).collect();
            tables.push(Table::new(&weights, place)?);
            let biased = group.iter().any(|(_, bias)| bias.is_some());
            let bias = group.iter().flat_map(|(weight, bias)| {
                match bias {
                    Some(bias) => Cow::Borrowed(*bias),
                    None => Cow::Owned(vec![0.0; weight.rows]),
                }
                .into_owned()
            });
            biases.push(if biased { Some(place.bias(&bias.collect::<Vec<f32>>())?) } else { None });
        }
        Ok(Self { tables, biases, widths })
    }

    /// Returns `(rows, width)` for each matrix.
    pub(super) fn multiply(&self, x: &Tensor) -> candle_core::Result<[Tensor; N]> {
        let mut found = Vec::with_capacity(N);
        for (table, bias) in self.tables.iter().zip(&self.biases) {
            let rows = table.multiply(x)?;
            found.push(match bias {
                Some(bias) => rows.broadcast_add(bias)?,
                None => rows,
            });
        }
        if let [together] = &found[..] {
            let mut start = 0;
            let pieces = self.widths.map(|width| {
                start += width;
                together.narrow(1, start - width, width)
            });
            found = pieces.into_iter().collect::<candle_core::Result<_>>()?;
        }
        found.try_into().map_err(|_| candle_core::Error::Msg("products of another number; this is a bug".into()))
    }
}

fn biased(linear: &Linear) -> (&Weight, Option<&[f32]>) {
    (&linear.weight, linear.bias.as_deref())
}

/// One layer.
pub(super) struct Layer {
    pub(super) attention_norm: Tensor,
    /// Queries, keys and values.
    pub(super) qkv: Products<3>,
    /// Over each head's query and key.
    pub(super) qk_norm: Option<(Tensor, Tensor)>,
    pub(super) output: Table,
    pub(super) post_attention_norm: Option<Tensor>,
    pub(super) feed_forward_norm: Tensor,
    /// What goes through the activation, and what is multiplied by it.
    pub(super) gate_up: Products<2>,
    pub(super) down: Table,
    pub(super) post_feed_forward_norm: Option<Tensor>,
}

impl Layer {
    pub(super) fn new(layer: &weights::Layer, place: &Place) -> Result<Self> {
        let norm = |weights: &Option<Vec<f32>>| weights.as_ref().map(|weights| place.vector(weights)).transpose();
        Ok(Self {
            attention_norm: place.vector(&layer.attention_norm)?,
            qkv: Products::new([&layer.query, &layer.key, &layer.value].map(biased), place)?,
            qk_norm: match &layer.qk_norm {
                Some((query, key)) => Some((place.vector(query)?, place.vector(key)?)),
                None => None,
            },
            output: Table::new(&[&layer.output], place)?,
            post_attention_norm: norm(&layer.post_attention_norm)?,
            feed_forward_norm: place.vector(&layer.feed_forward_norm)?,
            gate_up: Products::new([(&layer.gate, None), (&layer.up, None)], place)?,
            down: Table::new(&[&layer.down], place)?,
            post_feed_forward_norm: norm(&layer.post_feed_forward_norm)?,
        })
    }
}
