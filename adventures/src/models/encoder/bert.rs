//! The BERT family: BERT (Devlin et al. 2018), RoBERTa, XLM-RoBERTa and CamemBERT; `MPNet` (Song et al. 2020), which adds what
//! it has learned of distances to its scores.

use super::positions::distances;
use super::source::{Pack, Size, Source, activated, activation, config, normed};
use super::transformer::{Activation, Embeddings, Layer, Positions, Transformer};
use super::{Options, heads};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::panels::{Known, Then};
use crate::kernels::vector::Level;
use serde::Deserialize;
use std::sync::Mutex;

/// The ranges of distances that `MPNet` tells apart, whatever its configuration says: transformers does not ask it.
const RANGES: usize = 32;

/// The fields of `config.json` that matter here.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    model_type: String,
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
    #[serde(default)]
    pad_token_id: Option<u32>,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

fn default_activation() -> String {
    "gelu".into()
}

fn default_eps() -> f32 {
    1e-12
}

/// What the architectures call their parts.
struct Names {
    qkv: [&'static str; 3],
    attention_out: &'static str,
    attention_norm: &'static str,
}

const BERT: Names = Names {
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
};
const MPNET: Names = Names {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_out: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
};

pub(super) fn load<L: Pack>(checkpoint: &Checkpoint, options: &Options) -> Result<Transformer<L>> {
    let place = checkpoint.dir().display();
    let config: Config = config(checkpoint)?;
    let mpnet = config.model_type == "mpnet";
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return unsupported!("{place}: position_embedding_type {kind:?}; only \"absolute\" is supported");
    }
    let then = activation(checkpoint, &config.hidden_act)?;
    let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
    let heads = heads(checkpoint, hidden, config.num_attention_heads)?;
    if !mpnet && config.type_vocab_size == 0 {
        return invalid!("{place}: type_vocab_size 0");
    }
    let padding = match config.model_type.as_str() {
        "bert" => None,
        "mpnet" => Some(1),
        _ => Some(config.pad_token_id.unwrap_or(1)),
    };
    let reserved = padding.map_or(0, |padding| padding as usize + 1);
    let Some(context) = config.max_position_embeddings.checked_sub(reserved).filter(|n| *n > 0) else {
        return invalid!("{place}: max_position_embeddings {} leaves no position", config.max_position_embeddings);
    };
    let prefixes = ["", "bert.", "roberta.", "mpnet.", "model."];
    let source = Source::find(checkpoint, &prefixes, "embeddings.word_embeddings.weight")?;
    let at = source.at("embeddings");
    let embeddings = Embeddings {
        words: at.tensor("word_embeddings.weight", &[config.vocab_size, hidden])?,
        positions: Some(Positions {
            table: at.tensor("position_embeddings.weight", &[config.max_position_embeddings, hidden])?,
            padding,
        }),
        types: if mpnet {
            Vec::new()
        } else {
            at.tensor("token_type_embeddings.weight", &[config.type_vocab_size, hidden])?
        },
        norm: at.norm("LayerNorm", hidden, eps)?,
    };
    let names = if mpnet { &MPNET } else { &BERT };
    let layer = |i| Layer::load(&source.at(&format!("encoder.layer.{i}")), &config, names, then, options);
    let learned = || source.at("encoder").tensor("relative_attention_bias.weight", &[RANGES, heads.count]);
    Ok(Transformer {
        heads,
        level: Level::best(),
        context,
        embeddings,
        distances: if mpnet { Some(distances(&learned()?, heads.count, context)) } else { None },
        layers: options.layers(config.num_hidden_layers, layer)?,
        last_norm: None,
        team: options.team(heads),
        arenas: Mutex::default(),
    })
}

impl<L: Pack> Layer<L> {
    fn load(source: &Source<'_>, config: &Config, names: &Names, then: Then, options: &Options) -> Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let size = |outputs, inputs| Size { outputs, inputs, bias: true };
        let kernels = options.kernels();
        let (qkv, values) = source.attention(&names.qkv, size(hidden, hidden), &kernels)?;
        let norm = source.norm(names.attention_norm, hidden, eps)?;
        let square = size(hidden, hidden);
        Ok(Self {
            qkv,
            values,
            attention_out: source.linear(names.attention_out, square, kernels.rest, Known::default())?,
            up: source.linear("intermediate.dense", size(inner, hidden), kernels.rest, normed(&norm))?,
            attention_norm: Some(norm),
            activation: Activation::Plain(then),
            down: source.linear("output.dense", size(hidden, inner), kernels.rest, activated(then))?,
            out_norm: source.norm("output.LayerNorm", hidden, eps)?,
            rotary: None,
            window: None,
        })
    }
}
