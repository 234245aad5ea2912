//! Reads a checkpoint's tensors below a prefix, and the fields of its configuration.

use super::Kernels;
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::math::LayerNorm;
use crate::kernels::panels::{self, Kernel, Known, Then};
use serde::Deserialize;

/// Reads tensors below a prefix.
pub(super) struct Source<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    prefix: String,
}

/// A linear layer, as what computes it has it.
pub(super) trait Pack: Sized + Send {
    /// Returns the layer `x wᵀ + b`: `weight` is `(outputs, inputs)`, `bias` may be empty.
    fn pack(weight: Vec<f32>, bias: Vec<f32>, inputs: usize, kernel: Kernel, known: Known) -> Result<Self>;
}

impl Pack for panels::Linear {
    fn pack(weight: Vec<f32>, bias: Vec<f32>, inputs: usize, kernel: Kernel, known: Known) -> Result<Self> {
        Self::pack_for(&weight, &bias, inputs, kernel, known)
    }
}

/// The size of a linear layer, and whether it has a bias.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// Of each of the layers that become one.
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) bias: bool,
}

impl<'a> Source<'a> {
    /// Returns the tensors below the first of `prefixes` that has one of the name `first`.
    pub(super) fn find(checkpoint: &'a Checkpoint, prefixes: &[&str], first: &str) -> Result<Self> {
        let Some(prefix) = prefixes.iter().find(|prefix| checkpoint.has(&format!("{prefix}{first}"))) else {
            return invalid!("{}: no tensor {first:?}; the weights are not of this family", checkpoint.dir().display());
        };
        Ok(Self { checkpoint, prefix: (*prefix).to_owned() })
    }

    pub(super) fn at(&self, name: &str) -> Self {
        Self { checkpoint: self.checkpoint, prefix: format!("{}{name}.", self.prefix) }
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.checkpoint.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// Returns how many rows a matrix has.
    pub(super) fn rows(&self, name: &str) -> Result<usize> {
        let shape = self.checkpoint.raw(&format!("{}{name}", self.prefix))?.shape;
        Ok(shape.first().copied().unwrap_or(0))
    }

    /// Returns the layer `name`.
    pub(super) fn linear<L: Pack>(&self, name: &str, size: Size, kernel: Kernel, known: Known) -> Result<L> {
        let (weight, bias) = self.weights(&[name], size)?;
        L::pack(weight, bias, size.inputs, kernel, known)
    }

    /// Returns weights and biases of the layers `names`, one behind the other, each of `size`.
    fn weights(&self, names: &[&str], size: Size) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            let at = self.at(name);
            weight.extend(at.tensor("weight", &[size.outputs, size.inputs])?);
            if size.bias {
                bias.extend(at.tensor("bias", &[size.outputs])?);
            }
        }
        Ok((weight, bias))
    }

    /// Returns the layer of queries, keys and values that the layers `names`, each of `size`, are one behind the other, and that of
    /// the values where another kernel multiplies these.
    pub(super) fn attention<L: Pack>(&self, names: &[&str], size: Size, kernels: &Kernels) -> Result<(L, Option<L>)> {
        let (mut weight, mut bias) = self.weights(names, size)?;
        let pack = |weight, bias, kernel| L::pack(weight, bias, size.inputs, kernel, Known::default());
        if kernels.values == kernels.keys {
            return Ok((pack(weight, bias, kernels.keys)?, None));
        }
        let values = (weight.split_off(weight.len() / 3 * 2), bias.split_off(bias.len() / 3 * 2));
        Ok((pack(weight, bias, kernels.keys)?, Some(pack(values.0, values.1, kernels.values)?)))
    }

    /// Returns the two layers whose outputs are those of the layer `name`, each of `size`.
    pub(super) fn halves<L: Pack>(&self, name: &str, size: Size, kernel: Kernel, known: &Known) -> Result<[L; 2]> {
        let (at, Size { outputs, inputs, .. }) = (self.at(name), size);
        let weight = at.tensor("weight", &[outputs.saturating_mul(2), inputs])?;
        let bias = if size.bias { at.tensor("bias", &[outputs.saturating_mul(2)])? } else { Vec::new() };
        let half = |i: usize| {
            let bias = if size.bias { bias[i * outputs..(i + 1) * outputs].to_vec() } else { Vec::new() };
            let weight = weight[i * outputs * inputs..(i + 1) * outputs * inputs].to_vec();
            L::pack(weight, bias, inputs, kernel, known.clone())
        };
        Ok([half(0)?, half(1)?])
    }

    pub(super) fn norm(&self, name: &str, width: usize, eps: f32) -> Result<LayerNorm> {
        let at = self.at(name);
        // Checkpoints converted from TensorFlow name them gamma and beta.
        let (weight, bias) =
            if self.checkpoint.has(&format!("{}gamma", at.prefix)) { ("gamma", "beta") } else { ("weight", "bias") };
        at.layer_norm(at.tensor(weight, &[width])?, at.tensor(bias, &[width])?, eps)
    }

    /// Returns a norm that only scales.
    pub(super) fn scale(&self, name: &str, width: usize, eps: f32) -> Result<LayerNorm> {
        let at = self.at(name);
        at.layer_norm(at.tensor("weight", &[width])?, vec![0.0; width], eps)
    }

    fn layer_norm(&self, weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Result<LayerNorm> {
        if !(eps.is_finite() && eps >= 0.0) {
            // What it makes of a row would be no numbers.
            return invalid!("{}: layer norms with an epsilon of {eps}", self.checkpoint.dir().display());
        }
        Ok(LayerNorm { weight, bias, eps })
    }
}

/// Returns the fields of `config.json` that an architecture asks for.
pub(super) fn config<C: for<'de> Deserialize<'de>>(checkpoint: &Checkpoint) -> Result<C> {
    match serde_json::from_value(checkpoint.config().clone()) {
        Ok(config) => Ok(config),
        Err(e) => {
            let kind = checkpoint.config().get("model_type").and_then(|v| v.as_str()).unwrap_or("none");
            invalid!("{}: config.json of model_type {kind:?}: {e}", checkpoint.dir().display())
        }
    }
}

/// Returns what is known of what a norm makes.
pub(super) fn normed(norm: &LayerNorm) -> Known {
    let sizes: Vec<f32> = norm.weight.iter().zip(&norm.bias).map(|(weight, bias)| weight.hypot(*bias)).collect();
    Known::about(&sizes)
}

/// Returns what is known of what an activation makes.
pub(super) fn activated(then: Then) -> Known {
    match then {
        Then::Store | Then::Add => Known::default(),
        // Both are least near -0.7518, where they are -0.16997 and -0.17004.
        Then::GeluErf | Then::GeluTanh => Known::at_least(-0.1701),
        Then::Relu => Known::at_least(0.0),
    }
}

/// Returns what `hidden_act` names.
pub(super) fn activation(checkpoint: &Checkpoint, name: &str) -> Result<Then> {
    match name {
        "gelu" => Ok(Then::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Then::GeluTanh),
        "relu" => Ok(Then::Relu),
        other => {
            unsupported!("{}: hidden_act {other:?}; supported are gelu, gelu_new and relu", checkpoint.dir().display())
        }
    }
}
