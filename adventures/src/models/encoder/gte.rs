//! GTE's own architecture (Zhang et al. 2024, <https://arxiv.org/abs/2407.19669>), which its files call `new`: BERT with rotary
//! positions and a gated network.

use super::positions::Rotary;
use super::source::{Pack, Size, Source, config, normed};
use super::transformer::{Activation, Embeddings, Gate, Layer, Transformer};
use super::{Options, heads};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, unsupported};
use crate::kernels::panels::Known;
use crate::kernels::vector::Level;
use serde::Deserialize;
use std::sync::{Arc, Mutex};

/// The fields of `config.json` that matter here.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "default_activation")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<Scaling>,
    /// How transformers 5 states it.
    rope_parameters: Option<Parameters>,
    position_embedding_type: Option<String>,
    layer_norm_type: Option<String>,
    #[serde(default)]
    logn_attention_scale: bool,
    #[serde(default = "default_packed")]
    pack_qkv: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Scaling {
    factor: f32,
    #[serde(rename = "type")]
    kind: String,
    mixed_b: Option<f32>,
}

#[derive(Debug, Clone, Deserialize)]
struct Parameters {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
    factor: Option<f32>,
}

fn default_activation() -> String {
    "gelu".into()
}

fn default_eps() -> f32 {
    1e-12
}

fn default_packed() -> bool {
    true
}

pub(super) fn load<L: Pack>(checkpoint: &Checkpoint, options: &Options) -> Result<Transformer<L>> {
    let place = checkpoint.dir().display();
    let config: Config = config(checkpoint)?;
    let stated = |name: &str, value: &Option<String>, known: &str| match value.as_deref() {
        Some(other) if other != known => unsupported!("{place}: {name} {other:?}; only {known:?} is supported"),
        _ => Ok(()),
    };
    stated("position_embedding_type", &config.position_embedding_type, "rope")?;
    stated("layer_norm_type", &config.layer_norm_type, "layer_norm")?;
    if config.logn_attention_scale || !config.pack_qkv {
        return unsupported!("{place}: logn_attention_scale and pack_qkv=false");
    }
    let gate = match config.hidden_act.as_str() {
        "gelu" => Gate::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Gate::GeluTanh,
        "silu" => Gate::Silu,
        other => return unsupported!("{place}: hidden_act {other:?}; supported are gelu, gelu_new and silu"),
    };
    let (hidden, eps, context) = (config.hidden_size, config.layer_norm_eps, config.max_position_embeddings);
    let heads = heads(checkpoint, hidden, config.num_attention_heads)?;
    let (base, divisor) = config.rope(checkpoint, heads.dim)?;
    let source = Source::find(checkpoint, &["", "new.", "gte."], "embeddings.word_embeddings.weight")?;
    let at = source.at("embeddings");
    let embeddings = Embeddings {
        words: at.tensor("word_embeddings.weight", &[config.vocab_size, hidden])?,
        positions: None,
        types: match config.type_vocab_size {
            0 => Vec::new(),
            types => at.tensor("token_type_embeddings.weight", &[types, hidden])?,
        },
        norm: at.norm("LayerNorm", hidden, eps)?,
    };
    // Behind the embeddings, which have checked the width.
    let rotary = Arc::new(Rotary::new(context, heads.dim, base, divisor)?);
    let layer = |i| config.layer(&source.at(&format!("encoder.layer.{i}")), &rotary, gate, options);
    Ok(Transformer {
        heads,
        level: Level::best(),
        context,
        embeddings,
        distances: None,
        layers: options.layers(config.num_hidden_layers, layer)?,
        last_norm: None,
        team: options.team(heads),
        arenas: Mutex::default(),
    })
}

impl Config {
    /// Returns the base of rotary positions, and what their angles are divided by.
    fn rope(&self, checkpoint: &Checkpoint, dim: usize) -> Result<(f32, f32)> {
        let place = checkpoint.dir().display();
        if let Some(Parameters { rope_theta, rope_type, factor }) = &self.rope_parameters {
            let divisor = match rope_type.as_deref() {
                None | Some("default") => 1.0,
                Some("linear") => factor.unwrap_or(1.0),
                Some(other) => {
                    return unsupported!("{place}: rope_type {other:?}; supported are \"default\" and \"linear\"");
                }
            };
            return Ok((rope_theta.or(self.rope_theta).unwrap_or(160_000.0), divisor));
        }
        let base = self.rope_theta.unwrap_or(10_000.0);
        match &self.rope_scaling {
            None => Ok((base, 1.0)),
            // Fixed and not mixed, https://kexue.fm/archives/9706: for texts of any length.
            Some(Scaling { factor, kind, mixed_b: None }) if kind == "ntk" => {
                Ok((base * factor, factor.powf(2.0 / dim as f32)))
            }
            Some(Scaling { kind, mixed_b, .. }) => {
                unsupported!(
                    "{place}: rope_scaling {kind:?} with mixed_b {mixed_b:?}; only \"ntk\" without is supported"
                )
            }
        }
    }

    fn layer<L: Pack>(
        &self,
        source: &Source<'_>,
        rotary: &Arc<Rotary>,
        gate: Gate,
        options: &Options,
    ) -> Result<Layer<L>> {
        let (hidden, inner, eps) = (self.hidden_size, self.intermediate_size, self.layer_norm_eps);
        let size = |outputs, inputs, bias| Size { outputs, inputs, bias };
        let (kernels, any) = (options.kernels(), Known::default());
        let (qkv, values) = source.attention(&["attention.qkv_proj"], size(3 * hidden, hidden, true), &kernels)?;
        let norm = source.norm("attn_ln", hidden, eps)?;
        let wide = size(inner, hidden, false);
        let [up, gates] = source.halves("mlp.up_gate_proj", wide, kernels.rest, &normed(&norm))?;
        Ok(Layer {
            qkv,
            values,
            attention_out: source.linear("attention.o_proj", size(hidden, hidden, true), kernels.rest, any.clone())?,
            attention_norm: Some(norm),
            up,
            activation: Activation::Gated(gate, gates),
            down: source.linear("mlp.down_proj", size(hidden, inner, true), kernels.rest, any)?,
            out_norm: source.norm("mlp_ln", hidden, eps)?,
            rotary: Some(Arc::clone(rotary)),
            window: None,
        })
    }
}
