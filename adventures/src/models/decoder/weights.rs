//! A decoder's tensors: found by name, checked against the configuration, used where they lie.

use super::changes::Changes;
use super::config::Config;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, invalid, unsupported};
use crate::gguf::{GgmlType, Gguf};
use crate::kernels::quant::Matrix;
use safetensors::tensor::Dtype;
use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

/// Where tensors come from.
#[derive(Clone)]
pub(super) enum Source {
    Gguf(Arc<Gguf>),
    Checkpoint(Arc<Checkpoint>),
}

/// One of a decoder's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Embedding,
    Head,
    FinalNorm,
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryNorm,
    KeyNorm,
    Output,
    PostAttentionNorm,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    PostFeedForwardNorm,
}

impl Slot {
    fn gguf_name(self) -> &'static str {
        match self {
            Self::Embedding => "token_embd",
            Self::Head => "output",
            Self::FinalNorm => "output_norm",
            Self::AttentionNorm => "attn_norm",
            Self::Query => "attn_q",
            Self::Key => "attn_k",
            Self::Value => "attn_v",
            Self::QueryNorm => "attn_q_norm",
            Self::KeyNorm => "attn_k_norm",
            Self::Output => "attn_output",
            Self::PostAttentionNorm => "post_attention_norm",
            Self::FeedForwardNorm => "ffn_norm",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
            Self::PostFeedForwardNorm => "post_ffw_norm",
        }
    }

    /// The name in the checkpoints of transformers, where the norm before the feed-forward layer has two names.
    fn checkpoint_name(self, post_norms: bool) -> &'static str {
        match self {
            Self::Embedding => "model.embed_tokens",
            Self::Head => "lm_head",
            Self::FinalNorm => "model.norm",
            Self::AttentionNorm => "input_layernorm",
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::QueryNorm => "self_attn.q_norm",
            Self::KeyNorm => "self_attn.k_norm",
            Self::Output => "self_attn.o_proj",
            Self::FeedForwardNorm if post_norms => "pre_feedforward_layernorm",
            Self::PostAttentionNorm | Self::FeedForwardNorm => "post_attention_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
            Self::PostFeedForwardNorm => "post_feedforward_layernorm",
        }
    }
}

/// A matrix: `rows` rows of `cols` weights.
pub(super) struct Weight {
    place: Place,
    dtype: GgmlType,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Where a matrix is.
enum Place {
    /// In its file.
    Mapped { source: Source, name: String },
    /// In memory, because it was changed when the model was loaded.
    Owned(Vec<u8>),
}

impl Weight {
    /// Returns the matrix where it lies.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        let (dtype, data) = self.stored();
        let matrix = Matrix::new(dtype, self.rows, self.cols, data);
        let gguf = matches!(&self.place, Place::Mapped { source: Source::Gguf(_), .. });
        if gguf { matrix.as_ggml() } else { matrix }
    }

    /// Returns how the numbers are stored, and their bytes, row by row.
    pub(super) fn stored(&self) -> (GgmlType, &[u8]) {
        let data = match &self.place {
            Place::Mapped { source, name } => {
                source.find(name).expect("the tensor was there when the model was loaded; this is a bug").data
            }
            Place::Owned(data) => data,
        };
        (self.dtype, data)
    }

    /// Returns the matrix with `changes` made to it.
    fn changed(self, module: &str, head: bool, changes: &Changes) -> Result<Self> {
        let Some((dtype, data)) = changes.apply(module, head, self.matrix(), self.dtype, (self.rows, self.cols))?
        else {
            return Ok(self);
        };
        Ok(Self { place: Place::Owned(data), dtype, ..self })
    }
}

struct View<'a> {
    dtype: Option<GgmlType>,
    /// As the file has it, for messages.
    described: String,
    /// Outermost first.
    shape: Vec<usize>,
    data: &'a [u8],
}

impl Source {
    fn find(&self, name: &str) -> Result<View<'_>> {
        Ok(match self {
            Self::Gguf(gguf) => {
                let tensor = gguf.tensor(name)?;
                View {
                    dtype: Some(tensor.dtype),
                    described: tensor.dtype.to_string(),
                    shape: tensor.shape.iter().rev().copied().collect(),
                    data: tensor.data,
                }
            }
            Self::Checkpoint(checkpoint) => {
                let tensor = checkpoint.raw(name)?;
                let dtype = match tensor.dtype {
                    Dtype::F32 => Some(GgmlType::F32),
                    Dtype::F16 => Some(GgmlType::F16),
                    Dtype::BF16 => Some(GgmlType::BF16),
                    _ => None,
                };
                View {
                    dtype,
                    described: format!("{:?}", tensor.dtype),
                    shape: tensor.shape.to_vec(),
                    data: tensor.data,
                }
            }
        })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Gguf(gguf) => gguf.has_tensor(name),
            Self::Checkpoint(checkpoint) => checkpoint.has(name),
        }
    }

    pub(super) fn place(&self) -> String {
        match self {
            Self::Gguf(gguf) => gguf.name().to_owned(),
            Self::Checkpoint(checkpoint) => checkpoint.dir().display().to_string(),
        }
    }

    fn name(&self, slot: Slot, layer: Option<usize>, post_norms: bool, part: &str) -> String {
        match (self, layer) {
            (Self::Gguf(_), None) => format!("{}.{part}", slot.gguf_name()),
            (Self::Gguf(_), Some(i)) => format!("blk.{i}.{}.{part}", slot.gguf_name()),
            (Self::Checkpoint(_), None) => format!("{}.{part}", slot.checkpoint_name(post_norms)),
            (Self::Checkpoint(_), Some(i)) => format!("model.layers.{i}.{}.{part}", slot.checkpoint_name(post_norms)),
        }
    }

    /// Returns the tensor, once its type and its shape are what is asked for.
    fn checked(&self, name: &str, shape: &[usize]) -> Result<(View<'_>, GgmlType)> {
        let view = self.find(name)?;
        let place = || format!("{}: tensor {name:?}", self.place());
        if view.shape != shape {
            return invalid!("{} has shape {:?}, the configuration asks for {shape:?}", place(), view.shape);
        }
        match view.dtype {
            Some(dtype) if Matrix::supports(dtype) => Ok((view, dtype)),
            _ => unsupported!(
                "{} is {}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL and IQ4_XS",
                place(),
                view.described
            ),
        }
    }

    fn weight(&self, name: String, rows: usize, cols: usize) -> Result<Weight> {
        let (_, dtype) = self.checked(&name, &[rows, cols])?;
        Ok(Weight { place: Place::Mapped { source: self.clone(), name }, dtype, rows, cols })
    }

    /// Returns a vector in single precision; each number must be finite.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (view, dtype) = self.checked(name, &[len])?;
        let mut numbers = vec![0.0; len];
        Matrix::new(dtype, 1, len, view.data).read_row(0, &mut numbers);
        match numbers.iter().position(|x| !x.is_finite()) {
            Some(i) => invalid!("{}: tensor {name:?} holds {} at element {i}", self.place(), numbers[i]),
            None => Ok(numbers),
        }
    }
}

/// The tensors of one layer.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    /// Over each head's query and key.
    pub(super) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub(super) output: Weight,
    pub(super) post_attention_norm: Option<Vec<f32>>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: Weight,
    pub(super) up: Weight,
    pub(super) down: Weight,
    pub(super) post_feed_forward_norm: Option<Vec<f32>>,
}

/// A matrix and the bias of its products.
pub(super) struct Linear {
    pub(super) weight: Weight,
    pub(super) bias: Option<Vec<f32>>,
}

/// All tensors of a decoder.
pub(super) struct Weights {
    pub(super) embedding: Weight,
    /// `None` where the embedding serves as the head, and where there is none.
    pub(super) head: Option<Weight>,
    pub(super) final_norm: Vec<f32>,
    pub(super) layers: Vec<Layer>,
}

/// What turns the last hidden state into logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// A matrix of its own.
    Own,
    /// The embedding, where there is no matrix of its own.
    Tied,
    /// Nothing: the hidden states are what is wanted.
    None,
}

/// Finds tensors for one configuration.
struct Finder<'a> {
    source: &'a Source,
    config: &'a Config,
    changes: &'a Changes,
    /// The matrices that were found, as checkpoints name their modules.
    modules: RefCell<HashSet<String>>,
    /// Whether the embedding serves as the head.
    tied: bool,
}

impl Finder<'_> {
    fn name(&self, slot: Slot, layer: Option<usize>, part: &str) -> String {
        self.source.name(slot, layer, self.config.family.post_norms, part)
    }

    fn weight(&self, slot: Slot, layer: Option<usize>, rows: usize, cols: usize) -> Result<Weight> {
        let name = self.name(slot, layer, "weight");
        let module = name.trim_end_matches(".weight").to_owned();
        let head = slot == Slot::Head || (slot == Slot::Embedding && self.tied);
        let weight = self.source.weight(name, rows, cols)?.changed(&module, head, self.changes)?;
        self.modules.borrow_mut().insert(module);
        Ok(weight)
    }

    fn linear(&self, slot: Slot, layer: usize, rows: usize) -> Result<Linear> {
        let weight = self.weight(slot, Some(layer), rows, self.config.hidden)?;
        let bias = self.name(slot, Some(layer), "bias");
        // Some llama files carry biases that their family does not promise.
        let bias = (self.config.family.qkv_bias || self.source.has(&bias))
            .then(|| self.source.vector(&bias, rows))
            .transpose()?;
        Ok(Linear { weight, bias })
    }

    fn norm(&self, slot: Slot, layer: Option<usize>, len: usize) -> Result<Vec<f32>> {
        let mut norm = self.source.vector(&self.name(slot, layer, "weight"), len)?;
        // llama.cpp adds the one when it converts a checkpoint.
        if self.config.family.norms_less_one && matches!(self.source, Source::Checkpoint(_)) {
            for weight in &mut norm {
                *weight += 1.0;
            }
        }
        Ok(norm)
    }

    fn layer(&self, i: usize) -> Result<Layer> {
        let (config, at) = (self.config, Some(i));
        let (hidden, feed_forward) = (config.hidden, config.feed_forward);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let post = |slot| config.family.post_norms.then(|| self.norm(slot, at, hidden)).transpose();
        let qk_norm = if config.family.qk_norm {
            Some((self.norm(Slot::QueryNorm, at, config.head_dim)?, self.norm(Slot::KeyNorm, at, config.head_dim)?))
        } else {
            None
        };
        // A tensor that would be left out changes what the model says.
        for slot in [Slot::Output, Slot::Gate, Slot::Up, Slot::Down] {
            let bias = self.name(slot, at, "bias");
            if self.source.has(&bias) {
                return unsupported!("{}: tensor {bias:?}: biases there are not supported", self.source.place());
            }
        }
        Ok(Layer {
            attention_norm: self.norm(Slot::AttentionNorm, at, hidden)?,
            query: self.linear(Slot::Query, i, q)?,
            key: self.linear(Slot::Key, i, kv)?,
            value: self.linear(Slot::Value, i, kv)?,
            qk_norm,
            output: self.weight(Slot::Output, at, hidden, q)?,
            post_attention_norm: post(Slot::PostAttentionNorm)?,
            feed_forward_norm: self.norm(Slot::FeedForwardNorm, at, hidden)?,
            gate: self.weight(Slot::Gate, at, feed_forward, hidden)?,
            up: self.weight(Slot::Up, at, feed_forward, hidden)?,
            down: self.weight(Slot::Down, at, hidden, feed_forward)?,
            post_feed_forward_norm: post(Slot::PostFeedForwardNorm)?,
        })
    }
}

impl Weights {
    /// Finds every tensor that `config` asks for, and makes `changes` on the rayon pool that it is called in.
    pub(super) fn find(source: &Source, config: &Config, head: Head, changes: &Changes) -> Result<Self> {
        let mut finder = Finder { source, config, changes, modules: RefCell::default(), tied: false };
        let name = finder.name(Slot::Head, None, "weight");
        let own = match (head, source.has(&name)) {
            (Head::None, _) | (Head::Tied, false) => false,
            // transformers ignores a head beside `tie_word_embeddings`; llama.cpp has one only where it is used.
            (Head::Tied, true) => matches!(source, Source::Gguf(_)),
            (Head::Own, true) => true,
            (Head::Own, false) => {
                return Err(Error::NotFound(format!(
                    "{}: no tensor {name:?}, and the embedding is not tied to it",
                    source.place()
                )));
            }
        };
        finder.tied = !own && head != Head::None;
        let weights = Self {
            embedding: finder.weight(Slot::Embedding, None, config.vocab, config.hidden)?,
            head: own.then(|| finder.weight(Slot::Head, None, config.vocab, config.hidden)).transpose()?,
            final_norm: finder.norm(Slot::FinalNorm, None, config.hidden)?,
            layers: (0..config.layers).map(|i| finder.layer(i)).collect::<Result<_>>()?,
        };
        changes.check_all_made(&finder.modules.into_inner())?;
        Ok(weights)
    }
}
