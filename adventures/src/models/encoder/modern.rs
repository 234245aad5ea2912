//! ModernBERT (Warner et al. 2024): rotary positions, norms before attention and network, a gated network, and windows in two of
//! three layers.

use super::positions::Rotary;
use super::source::{Pack, Size, Source, config, normed};
use super::transformer::{Activation, Embeddings, Gate, Layer, Transformer};
use super::{Options, heads};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::math::LayerNorm;
use crate::kernels::panels::Known;
use crate::kernels::vector::Level;
use serde::Deserialize;
use std::sync::{Arc, Mutex};

/// What the layers that see a window are called.
const LOCAL: &str = "sliding_attention";

/// The fields of `config.json` that matter here, with what transformers takes where they are missing.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "default_activation")]
    hidden_activation: String,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    norm_eps: f32,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_window")]
    local_attention: usize,
    #[serde(default = "default_every")]
    global_attn_every_n_layers: usize,
    layer_types: Option<Vec<String>>,
    global_rope_theta: Option<f32>,
    local_rope_theta: Option<f32>,
    rope_parameters: Option<Ropes>,
}

/// How transformers 5 states what turns the layers' positions.
#[derive(Debug, Clone, Default, Deserialize)]
struct Ropes {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
}

fn default_activation() -> String {
    "gelu".into()
}

fn default_context() -> usize {
    8192
}

fn default_eps() -> f32 {
    1e-5
}

fn default_window() -> usize {
    128
}

fn default_every() -> usize {
    3
}

pub(super) fn load<L: Pack>(checkpoint: &Checkpoint, options: &Options) -> Result<Transformer<L>> {
    let place = checkpoint.dir().display();
    let config: Config = config(checkpoint)?;
    let (hidden, context) = (config.hidden_size, config.max_position_embeddings);
    let heads = heads(checkpoint, hidden, config.num_attention_heads)?;
    let gate = match config.hidden_activation.as_str() {
        "gelu" => Gate::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Gate::GeluTanh,
        "silu" => Gate::Silu,
        other => return unsupported!("{place}: hidden_activation {other:?}; supported are gelu, gelu_new and silu"),
    };
    let ropes = config.rope_parameters.clone().unwrap_or_default();
    let [full, sliding] = [ropes.full_attention, ropes.sliding_attention].map(Option::unwrap_or_default);
    for kind in [&full, &sliding].into_iter().filter_map(|rope| rope.rope_type.as_deref()) {
        if kind != "default" {
            return unsupported!("{place}: rope_type {kind:?}; only \"default\" is supported");
        }
    }
    let global = full.rope_theta.or(config.global_rope_theta).unwrap_or(160_000.0);
    let local = sliding.rope_theta.or(config.local_rope_theta).unwrap_or(10_000.0);
    let source = Source::find(checkpoint, &["", "model."], "embeddings.tok_embeddings.weight")?;
    let at = source.at("embeddings");
    let embeddings = Embeddings {
        words: at.tensor("tok_embeddings.weight", &[config.vocab_size, hidden])?,
        positions: None,
        types: Vec::new(),
        norm: config.norm(&at, "norm")?,
    };
    config.check_types(checkpoint)?;
    // Behind the embeddings, which have checked the width.
    let rotary = |base| Rotary::new(context, heads.dim, base, 1.0).map(Arc::new);
    let rotary = [rotary(global)?, rotary(local)?];
    let layer = |i: usize| config.layer(&source.at(&format!("layers.{i}")), i, &rotary, gate, options);
    Ok(Transformer {
        heads,
        level: Level::best(),
        context,
        embeddings,
        distances: None,
        layers: options.layers(config.num_hidden_layers, layer)?,
        last_norm: Some(config.norm(&source, "final_norm")?),
        team: options.team(heads),
        arenas: Mutex::default(),
    })
}

impl Config {
    /// Fails where a layer is neither of those that see all nor of those that see a window.
    fn check_types(&self, checkpoint: &Checkpoint) -> Result<()> {
        let (place, Some(types)) = (checkpoint.dir().display(), &self.layer_types) else { return Ok(()) };
        if types.len() != self.num_hidden_layers {
            return invalid!("{place}: {} layer_types of {} layers", types.len(), self.num_hidden_layers);
        }
        match types.iter().find(|kind| !["full_attention", LOCAL].contains(&kind.as_str())) {
            Some(other) => {
                unsupported!("{place}: layer type {other:?}; supported are full_attention and {LOCAL}")
            }
            None => Ok(()),
        }
    }

    /// Returns whether a layer sees a window.
    fn is_local(&self, i: usize) -> bool {
        match &self.layer_types {
            Some(types) => types[i] == LOCAL,
            None => !i.is_multiple_of(self.global_attn_every_n_layers.max(1)),
        }
    }

    fn norm(&self, source: &Source<'_>, name: &str) -> Result<LayerNorm> {
        if self.norm_bias {
            return source.norm(name, self.hidden_size, self.norm_eps);
        }
        source.scale(name, self.hidden_size, self.norm_eps)
    }

    fn layer<L: Pack>(
        &self,
        source: &Source<'_>,
        i: usize,
        rotary: &[Arc<Rotary>; 2],
        gate: Gate,
        options: &Options,
    ) -> Result<Layer<L>> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let attention = |outputs| Size { outputs, inputs: hidden, bias: self.attention_bias };
        let network = |outputs, inputs| Size { outputs, inputs, bias: self.mlp_bias };
        let (kernels, any) = (options.kernels(), Known::default());
        let (qkv, values) = source.attention(&["attn.Wqkv"], attention(3 * hidden), &kernels)?;
        let norm = self.norm(source, "mlp_norm")?;
        let [gates, up] = source.halves("mlp.Wi", network(inner, hidden), kernels.rest, &normed(&norm))?;
        let local = self.is_local(i);
        Ok(Layer {
            qkv,
            values,
            attention_out: source.linear("attn.Wo", attention(hidden), kernels.rest, any.clone())?,
            // The first layer reads what the embeddings' norm made.
            attention_norm: if i == 0 { None } else { Some(self.norm(source, "attn_norm")?) },
            up,
            activation: Activation::Gated(gate, gates),
            down: source.linear("mlp.Wo", network(hidden, inner), kernels.rest, any)?,
            out_norm: norm,
            rotary: Some(Arc::clone(&rotary[usize::from(local)])),
            window: local.then_some(self.local_attention / 2),
        })
    }
}
