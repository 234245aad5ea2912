//! The decoder on candle's tensors, for accelerators: the same configuration, loaders and checks as on the CPU.
//!
//! Weights of blocks stay blocks ([`weights`]), each run owns its cache ([`cache`]), and nothing is copied back but the logits
//! of the tokens that are asked for. What is computed is the same but for rounding, not to the last bit: a product of one row
//! and one of several are different kernels.

mod bidirectional;
mod cache;
mod pass;
mod rope;
mod run;
mod weights;

use super::config::Config;
use super::weights::Weights;
use crate::device::name;
use crate::error::{Error, Result};
use crate::gguf::GgmlType;
use crate::models::tensors::upload;
use crate::models::{CausalLm, Encoder, Run, Step};
use candle_core::{DType, Device, Tensor};
use rope::Rope;
use run::Reading;
use std::sync::Arc;
use weights::{Layer, Table};

/// A decoder whose weights are on a device; its runs share them.
struct Decoder(Arc<Model>);

struct Model {
    config: Config,
    place: Place,
    embedding: Table,
    /// `None` where the hidden states are what is wanted.
    head: Option<Table>,
    final_norm: Tensor,
    layers: Vec<Layer>,
    /// Of layers that see everything, and of layers with a window.
    ropes: [Rope; 2],
    context: usize,
}

/// Where and in what precision is computed.
#[derive(Debug, Clone)]
struct Place {
    device: Device,
    /// Of the products and of the cache.
    products: DType,
    /// Of the sums that run from layer to layer, and of the norms.
    sums: DType,
}

/// Returns the decoder of `weights`, which are copied to `device`.
pub(super) fn decoder(config: Config, weights: &Weights, device: &Device, context: usize) -> Result<Arc<dyn CausalLm>> {
    Ok(Arc::new(Decoder(Arc::new(Model::new(config, weights, device, context, true)?))))
}

/// Returns the decoder of `weights` without its causal mask.
pub(super) fn encoder(config: Config, weights: &Weights, device: &Device, context: usize) -> Result<Box<dyn Encoder>> {
    Ok(Box::new(bidirectional::Bidirectional(Model::new(config, weights, device, context, false)?)))
}

impl Place {
    /// The precision of the weights: that of the embedding, as adapters leave the sums of others in single precision. Candle
    /// has no products of bfloat16 on the CPU.
    fn new(config: &Config, weights: &Weights, device: &Device) -> Self {
        let (dtype, _) = weights.embedding.stored();
        let brief = matches!(dtype, GgmlType::BF16 | GgmlType::F16) && !device.is_cpu();
        let products = if brief { DType::BF16 } else { DType::F32 };
        // One more than a weight is not a number of bfloat16.
        let sums = if config.family.norms_less_one { DType::F32 } else { products };
        Self { device: device.clone(), products, sums }
    }

    /// Returns a vector of the precision of `sums`.
    fn vector(&self, numbers: &[f32]) -> Result<Tensor> {
        upload(numbers, &[numbers.len()], self.sums, &self.device)
    }

    /// Returns a vector of the precision of `products`.
    fn bias(&self, numbers: &[f32]) -> Result<Tensor> {
        upload(numbers, &[numbers.len()], self.products, &self.device)
    }
}

impl Model {
    fn new(config: Config, weights: &Weights, device: &Device, context: usize, head: bool) -> Result<Self> {
        let place = Place::new(&config, weights, device);
        let load = || -> Result<_> {
            let embedding = Table::new(&[&weights.embedding], &place)?;
            let head = match &weights.head {
                _ if !head => None,
                Some(own) => Some(Table::new(&[own], &place)?),
                None => Some(embedding.clone()),
            };
            let layers = weights.layers.iter().map(|layer| Layer::new(layer, &place)).collect::<Result<Vec<_>>>()?;
            Ok((embedding, head, layers, place.vector(&weights.final_norm)?))
        };
        let (embedding, head, layers, final_norm) = load().map_err(|e| match e {
            Error::Model(e) => Error::Busy(format!("copying the weights to {}: {e}", name(Some(device)))),
            other => other,
        })?;
        let ropes = [&config.global, &config.local].map(|rotary| Rope::new(&config, rotary, &place));
        Ok(Self { config, place, embedding, head, final_norm, layers, ropes, context })
    }
}

impl CausalLm for Decoder {
    fn context(&self) -> usize {
        self.0.context
    }

    fn vocab_size(&self) -> usize {
        self.0.config.vocab
    }

    fn start(&self) -> Box<dyn Run> {
        Box::new(Reading::new(Arc::clone(&self.0)))
    }

    fn step(&self, steps: &mut [Step<'_>]) -> Vec<Result<Vec<Vec<f32>>>> {
        run::step(&self.0, steps)
    }

    fn step_best(&self, steps: &mut [Step<'_>], vocab: usize) -> Option<Vec<Result<Vec<u32>>>> {
        Some(run::step_best(&self.0, steps, vocab))
    }
}
