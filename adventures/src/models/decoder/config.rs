//! What makes one decoder differ from another, as data.

use super::cache::Shape;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::causal;

/// A family of decoders: what its files do not say themselves.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a part that a family has or has not")]
pub(super) struct Family {
    /// `general.architecture` of a GGUF file, or `model_type` of a `config.json`.
    pub(super) name: &'static str,
    /// The function of the gated feed-forward layer.
    pub(super) activation: Activation,
    /// How rotary positions pair the numbers of a head, by the format that the file is in: llama.cpp permutes the queries
    /// and keys of some families so that neighbours pair up.
    pub(super) gguf_pairs: Pairs,
    /// Biases on queries, keys and values.
    pub(super) qkv_bias: bool,
    /// A norm over each head's query and key.
    pub(super) qk_norm: bool,
    /// A norm after attention and one after the feed-forward layer, beside those before.
    pub(super) post_norms: bool,
    /// Embeddings are multiplied by the root of the hidden size.
    pub(super) scaled_embeddings: bool,
    /// Queries are scaled, not scores: the same but for rounding.
    pub(super) scaled_queries: bool,
    /// Safetensors hold norm weights less one.
    pub(super) norms_less_one: bool,
    /// One layer of this many attends to all positions, the rest to a window, where files do not say which.
    pub(super) global_every: Option<usize>,
    /// The rotary base of layers with a window, where it is not that of the others.
    pub(super) local_base: Option<f32>,
    /// One layer of this many has no rotary positions (`NoPE`, <https://arxiv.org/abs/2305.19466>), where files do not say which.
    pub(super) unturned_every: Option<usize>,
}

const LLAMA: Family = Family {
    name: "llama",
    activation: Activation::Silu,
    gguf_pairs: Pairs::Neighbours,
    qkv_bias: false,
    qk_norm: false,
    post_norms: false,
    scaled_embeddings: false,
    scaled_queries: false,
    norms_less_one: false,
    global_every: None,
    local_base: None,
    unturned_every: None,
};

const GEMMA: Family = Family {
    name: "gemma",
    activation: Activation::GeluTanh,
    gguf_pairs: Pairs::Halves,
    scaled_embeddings: true,
    scaled_queries: true,
    norms_less_one: true,
    ..LLAMA
};

const GEMMA2: Family = Family { name: "gemma2", post_norms: true, global_every: Some(2), ..GEMMA };

const GEMMA3: Family =
    Family { name: "gemma3", qk_norm: true, global_every: Some(6), local_base: Some(10_000.0), ..GEMMA2 };

const QWEN2: Family = Family { name: "qwen2", gguf_pairs: Pairs::Halves, qkv_bias: true, ..LLAMA };

const QWEN3: Family = Family { name: "qwen3", qkv_bias: false, qk_norm: true, ..QWEN2 };

/// The families, by the name in their files.
const FAMILIES: [Family; 9] = [
    LLAMA,
    Family { name: "mistral", ..LLAMA },
    GEMMA,
    GEMMA2,
    GEMMA3,
    Family { name: "gemma3_text", ..GEMMA3 },
    QWEN2,
    QWEN3,
    Family { name: "smollm3", unturned_every: Some(4), ..LLAMA },
];

impl Family {
    pub(super) fn find(name: &str) -> Result<&'static Self> {
        if let Some(family) = FAMILIES.iter().find(|family| family.name == name) {
            return Ok(family);
        }
        let known: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        unsupported!("architecture {name:?}; supported are {}", known.join(", "))
    }

    /// Which layers attend to a window, where the file gives the window but no list.
    pub(super) fn local_layers(&self, layers: usize, global_every: Option<usize>) -> Vec<bool> {
        let every = global_every.or(self.global_every);
        (0..layers).map(|i| every.is_none_or(|n| n == 0 || i % n < n - 1)).collect()
    }

    /// Which layers have no rotary positions, where the file gives no list.
    pub(super) fn unturned_layers(&self, layers: usize, every: Option<usize>) -> Vec<bool> {
        let every = every.or(self.unturned_every).filter(|n| *n > 0);
        (0..layers).map(|i| every.is_some_and(|n| (i + 1).is_multiple_of(n))).collect()
    }
}

/// The function between the two halves of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    GeluTanh,
    GeluErf,
}

impl Activation {
    /// `gate = f(gate) * up`. `half` says whether GELU is rounded to half precision, as llama.cpp's table of it is.
    pub(super) fn gate(self, half: bool, gate: &mut [f32], up: &[f32]) {
        match self {
            Self::Silu => causal::silu_gate(gate, up),
            Self::GeluTanh if half => causal::gelu_half_gate(gate, up),
            Self::GeluTanh => causal::gelu_tanh_gate(gate, up),
            Self::GeluErf => causal::gelu_erf_gate(gate, up),
        }
    }
}

/// Which numbers of a head a rotary position turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// `2i` and `2i + 1`.
    Neighbours,
    /// `i` and `i + dims / 2`.
    Halves,
}

/// The rotary positions of one kind of layer.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    pub(super) base: f32,
    /// What positions are divided by.
    pub(super) factor: f32,
    /// What each pair's frequency is divided by; empty where that is 1.
    pub(super) factors: Vec<f32>,
    /// How much of each pair's angle is not divided by `factor`, from 0 to 1; empty where that is 0.
    pub(super) kept: Vec<f32>,
    /// What sines and cosines are multiplied by.
    pub(super) magnitude: f32,
}

impl Rotary {
    /// Returns positions that are neither stretched nor scaled.
    pub(super) fn new(base: f32) -> Self {
        Self { base, factor: 1.0, factors: Vec::new(), kept: Vec::new(), magnitude: 1.0 }
    }
}

/// The shape of one decoder.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) family: &'static Family,
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) feed_forward: usize,
    pub(super) vocab: usize,
    pub(super) context: usize,
    pub(super) norm_eps: f32,
    pub(super) activation: Activation,
    /// What scores are multiplied by.
    pub(super) query_scale: f32,
    /// Bounds of the scores and of the logits.
    pub(super) score_cap: Option<f32>,
    pub(super) logit_cap: Option<f32>,
    pub(super) pairs: Pairs,
    /// How many numbers of a head turn.
    pub(super) rotary_dims: usize,
    pub(super) global: Rotary,
    pub(super) local: Rotary,
    /// How many positions a layer with a window sees, its own included.
    pub(super) window: Option<usize>,
    /// Whether keys, values, queries, the weights of values and GELU go through half precision, as llama.cpp has them.
    pub(super) half: bool,
    /// Which layers have the window and the local positions.
    pub(super) local_layers: Vec<bool>,
    /// Which layers have no rotary positions.
    pub(super) unturned_layers: Vec<bool>,
}

/// No decoder comes near: bounds that keep products of sizes from overflowing.
const MAX_SIZE: usize = 1 << 24;
/// More than any model has; whoever makes something of each looks first.
pub(super) const MAX_LAYERS: usize = 4096;

impl Config {
    pub(super) fn cache_shape(&self) -> Shape {
        Shape::new(&self.local_layers, self.kv_heads, self.head_dim, self.window)
    }

    /// Checks that the sizes fit together; `place` begins the message.
    pub(super) fn check(&self, place: &str) -> Result<()> {
        for (name, size) in [
            ("layers", self.layers),
            ("hidden size", self.hidden),
            ("heads", self.heads),
            ("key-value heads", self.kv_heads),
            ("head size", self.head_dim),
            ("feed-forward size", self.feed_forward),
            ("vocabulary", self.vocab),
            ("context", self.context),
        ] {
            if size == 0 || size > MAX_SIZE {
                return invalid!("{place}: {name} {size}, it must be 1 to {MAX_SIZE}");
            }
        }
        if self.layers > MAX_LAYERS || self.heads > 4096 || self.head_dim > 4096 {
            return invalid!(
                "{place}: {} layers, {} heads of {}: more than any model has",
                self.layers,
                self.heads,
                self.head_dim
            );
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return invalid!("{place}: {} heads do not share {} key-value heads evenly", self.heads, self.kv_heads);
        }
        if !self.rotary_dims.is_multiple_of(2) || self.rotary_dims > self.head_dim {
            return invalid!("{place}: rotary positions over {} of {} numbers", self.rotary_dims, self.head_dim);
        }
        if self.window == Some(0) {
            return invalid!("{place}: a sliding window of 0 positions");
        }
        for rotary in [&self.global, &self.local] {
            let pairs = self.rotary_dims / 2;
            for list in [&rotary.factors, &rotary.kept] {
                if !list.is_empty() && list.len() != pairs {
                    return invalid!("{place}: {} rotary factors for {pairs} pairs", list.len());
                }
            }
            let wrong = |x: f32| !(x.is_finite() && x > 0.0);
            if wrong(rotary.base) || wrong(rotary.factor) || rotary.factors.iter().any(|x| wrong(*x)) {
                return invalid!("{place}: rotary base {}, factor {}", rotary.base, rotary.factor);
            }
            if wrong(rotary.magnitude) || rotary.kept.iter().any(|x| !(0.0..=1.0).contains(x)) {
                return invalid!("{place}: rotary magnitude {}, shares {:?}", rotary.magnitude, rotary.kept);
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return invalid!("{place}: norm epsilon {}", self.norm_eps);
        }
        for (name, cap) in [("score", self.score_cap), ("logit", self.logit_cap)] {
            if cap.is_some_and(|cap| !(cap.is_finite() && cap > 0.0)) {
                return invalid!("{place}: {name} cap {}", cap.unwrap_or_default());
            }
        }
        if !(self.query_scale.is_finite() && self.query_scale > 0.0) {
            return invalid!("{place}: query scale {}", self.query_scale);
        }
        Ok(())
    }
}
