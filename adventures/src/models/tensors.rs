//! What decoders and encoders on candle's tensors share.
//!
//! These are the models for an accelerator. The same code runs on candle's CPU device, which is how it is tested where there
//! is no accelerator; who asks for the CPU gets the kernels of this crate.

use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};

/// The most scores that are in memory at a time: half a gigabyte of them.
pub(super) const MOST_SCORES: usize = 1 << 27;

/// How scores are made of products.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scores {
    /// What products are multiplied by.
    pub(super) scale: f32,
    /// Their bound.
    pub(super) cap: Option<f32>,
}

/// Returns `softmax(q kᵀ * scale + mask) v`, `(batch, rows, dim)` as `q` is; `k` and `v` are `(batch, keys, dim)`.
///
/// `mask` is added to the scores, which are seen as `(…, keys)` of the shape `seen` for that.
pub(super) fn attend(
    [q, k, v]: [&Tensor; 3],
    scores: Scores,
    mask: Option<(&Tensor, &[usize])>,
) -> candle_core::Result<Tensor> {
    let products = (q * f64::from(scores.scale))?.matmul(&k.t()?)?;
    // In single precision: a sum of exponentials of bfloat16 would have two digits.
    let mut all = products.to_dtype(DType::F32)?;
    if let Some(cap) = scores.cap {
        all = ((all / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    if let Some((mask, seen)) = mask {
        all = all.reshape(seen)?.broadcast_add(mask)?.reshape(products.shape())?;
    }
    softmax_last_dim(&all)?.to_dtype(v.dtype())?.matmul(v)
}

/// Returns `x` divided by the root of its mean square, times `weight`, of the same type as `x`; see [`rms_norm`].
pub(super) fn norm(x: &Tensor, weight: &Tensor, eps: f32) -> candle_core::Result<Tensor> {
    rms_norm(&x.to_dtype(weight.dtype())?.contiguous()?, weight, eps)
}

/// Returns `numbers` as a tensor of `dtype` on `device`.
pub(super) fn upload(numbers: &[f32], shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    // Rounded here, so that half as much is copied.
    let host = Tensor::from_slice(numbers, shape, &Device::Cpu)?.to_dtype(dtype)?;
    Ok(host.to_device(device)?)
}
