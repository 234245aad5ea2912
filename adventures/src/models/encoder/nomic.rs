//! Nomic's BERT (Nussbaum et al. 2024, <https://arxiv.org/abs/2402.01613>): rotary positions, a network gated by `SiLU`, and no
//! biases.

use super::positions::Rotary;
use super::source::{Pack, Size, Source, config, normed};
use super::transformer::{Activation, Embeddings, Gate, Layer, Transformer};
use super::{Options, heads};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, unsupported};
use crate::kernels::panels::Known;
use crate::kernels::vector::Level;
use serde::Deserialize;
use serde_json::Value;
use std::sync::{Arc, Mutex};

/// The fields of `config.json` that matter here: those of GPT-2, or, as transformers 5 writes them, those of BERT.
#[derive(Debug, Clone, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "fields of a file")]
struct Config {
    vocab_size: usize,
    #[serde(default)]
    type_vocab_size: usize,
    n_embd: Option<usize>,
    hidden_size: Option<usize>,
    n_layer: Option<usize>,
    num_hidden_layers: Option<usize>,
    n_head: Option<usize>,
    num_attention_heads: Option<usize>,
    n_positions: Option<usize>,
    max_position_embeddings: Option<usize>,
    layer_norm_epsilon: Option<f32>,
    layer_norm_eps: Option<f32>,
    activation_function: Option<String>,
    hidden_act: Option<String>,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    qkv_proj_bias: bool,
    #[serde(default)]
    mlp_fc1_bias: bool,
    #[serde(default)]
    mlp_fc2_bias: bool,
    rotary_emb_fraction: Option<f32>,
    rotary_emb_base: Option<f32>,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    #[serde(default)]
    rotary_emb_scale_base: Value,
    rotary_scaling_factor: Option<f32>,
    max_trained_positions: Option<usize>,
    rope_parameters: Option<Parameters>,
    num_experts: Option<usize>,
    #[serde(default)]
    parallel_block: bool,
    #[serde(default)]
    use_rms_norm: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
struct Parameters {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
}

/// What the fields say, however they are called.
struct Shape {
    hidden: usize,
    layers: usize,
    heads: usize,
    context: usize,
    eps: f32,
    base: f32,
    gate: Gate,
}

pub(super) fn load<L: Pack>(checkpoint: &Checkpoint, options: &Options) -> Result<Transformer<L>> {
    let config: Config = config(checkpoint)?;
    let shape = config.shape(checkpoint)?;
    let Shape { hidden, layers, context, eps, base, .. } = shape;
    let heads = heads(checkpoint, hidden, shape.heads)?;
    let source = Source::find(checkpoint, &["", "bert.", "nomic_bert."], "embeddings.word_embeddings.weight")?;
    let at = source.at("embeddings");
    let embeddings = Embeddings {
        words: at.tensor("word_embeddings.weight", &[config.vocab_size, hidden])?,
        positions: None,
        types: match config.type_vocab_size {
            0 => Vec::new(),
            types => at.tensor("token_type_embeddings.weight", &[types, hidden])?,
        },
        norm: source.norm("emb_ln", hidden, eps)?,
    };
    // Behind the embeddings, which have checked the width.
    let rotary = Arc::new(Rotary::new(context, heads.dim, base, 1.0)?);
    let layer = |i| config.layer(&source.at(&format!("encoder.layers.{i}")), &shape, &rotary, options);
    Ok(Transformer {
        heads,
        level: Level::best(),
        context,
        embeddings,
        distances: None,
        layers: options.layers(layers, layer)?,
        last_norm: None,
        team: options.team(heads),
        arenas: Mutex::default(),
    })
}

impl Config {
    fn shape(&self, checkpoint: &Checkpoint) -> Result<Shape> {
        let place = checkpoint.dir().display();
        let needed = |value: Option<usize>, name: &str| match value {
            Some(value) => Ok(value),
            None => unsupported!("{place}: config.json of model_type \"nomic_bert\" without {name}"),
        };
        for (other, what) in [
            (self.num_experts.is_some_and(|count| count > 0), "num_experts"),
            (self.parallel_block, "parallel_block"),
            (self.use_rms_norm == Some(true), "use_rms_norm"),
            (self.prenorm, "prenorm"),
            (self.rotary_emb_interleaved, "rotary_emb_interleaved"),
            (!self.rotary_emb_scale_base.is_null(), "rotary_emb_scale_base"),
            (self.rotary_emb_fraction.is_some_and(|fraction| (fraction - 1.0).abs() > 1e-6), "rotary_emb_fraction"),
        ] {
            if other {
                return unsupported!("{place}: this {what} of model_type \"nomic_bert\"");
            }
        }
        let gate = match self.activation_function.as_deref().or(self.hidden_act.as_deref()).unwrap_or("swiglu") {
            "swiglu" | "silu" => Gate::Silu,
            "geglu" => Gate::GeluErf,
            other => {
                return unsupported!("{place}: activation_function {other:?}; supported are swiglu and geglu");
            }
        };
        let rope = self.rope_parameters.as_ref();
        if let Some(kind) = rope.and_then(|rope| rope.rope_type.as_deref()).filter(|kind| *kind != "default") {
            return unsupported!("{place}: rope_type {kind:?}; only \"default\" is supported");
        }
        let base = rope.and_then(|rope| rope.rope_theta).or(self.rotary_emb_base).unwrap_or(1000.0);
        let mut context = needed(self.n_positions.or(self.max_position_embeddings), "n_positions")?;
        // Longer texts would turn each position by their own length; those that it was trained for are not scaled.
        if self.rotary_scaling_factor.is_some() {
            context = context.min(self.max_trained_positions.unwrap_or(2048));
        }
        Ok(Shape {
            hidden: needed(self.n_embd.or(self.hidden_size), "n_embd")?,
            layers: needed(self.n_layer.or(self.num_hidden_layers), "n_layer")?,
            heads: needed(self.n_head.or(self.num_attention_heads), "n_head")?,
            context,
            eps: self.layer_norm_epsilon.or(self.layer_norm_eps).unwrap_or(1e-12),
            base,
            gate,
        })
    }

    fn layer<L: Pack>(
        &self,
        source: &Source<'_>,
        shape: &Shape,
        rotary: &Arc<Rotary>,
        options: &Options,
    ) -> Result<Layer<L>> {
        let (hidden, eps) = (shape.hidden, shape.eps);
        let size = |outputs, inputs, bias| Size { outputs, inputs, bias };
        let (kernels, any) = (options.kernels(), Known::default());
        // The configuration's n_inner is rounded up before it becomes a matrix.
        let inner = source.rows("mlp.fc11.weight")?;
        let wide = size(inner, hidden, self.mlp_fc1_bias);
        let attention = |outputs| size(outputs, hidden, self.qkv_proj_bias);
        let (qkv, values) = source.attention(&["attn.Wqkv"], attention(3 * hidden), &kernels)?;
        let norm = source.norm("norm1", hidden, eps)?;
        let known = normed(&norm);
        Ok(Layer {
            qkv,
            values,
            attention_out: source.linear("attn.out_proj", attention(hidden), kernels.rest, any.clone())?,
            attention_norm: Some(norm),
            up: source.linear("mlp.fc11", wide, kernels.rest, known.clone())?,
            activation: Activation::Gated(shape.gate, source.linear("mlp.fc12", wide, kernels.rest, known)?),
            down: source.linear("mlp.fc2", size(hidden, inner, self.mlp_fc2_bias), kernels.rest, any)?,
            out_norm: source.norm("norm2", hidden, eps)?,
            rotary: Some(Arc::clone(rotary)),
            window: None,
        })
    }
}
