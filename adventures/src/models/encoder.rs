//! The BERT family: BERT (Devlin et al. 2018), RoBERTa, XLM-RoBERTa and CamemBERT, over packed batches.
//!
//! Sequences are never padded: linear layers run over the tokens of many sequences at once, attention over each sequence
//! alone, so a vector does not depend on what is in the batch beside it.

use super::{Batch, Encoder, Rows};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, invalid, unsupported};
use crate::kernels::attention::{self, Heads, attention};
use crate::kernels::math::{LayerNorm, accumulate, layer_norm};
use crate::kernels::panels::{CHUNK_ROWS, Kernel, Linear, Precision, Rounded, Then, Threads};
use crate::kernels::vector::Level;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many tokens go through the layers together: enough to fill the matrix products, few enough for the caches.
const BLOCK_TOKENS: usize = 256;

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

/// Returns the encoder that the checkpoint's `model_type` names; it computes on `pool`.
pub fn load(checkpoint: &Checkpoint, precision: Precision, pool: Arc<rayon::ThreadPool>) -> Result<Box<dyn Encoder>> {
    Ok(Box::new(Bert::load(checkpoint, precision, pool)?))
}

struct Bert {
    hidden_size: usize,
    heads: Heads,
    activation: Then,
    level: Level,
    context: usize,
    /// Padding's id where positions are counted as RoBERTa does: from `padding + 1`, padding itself staying at `padding`.
    roberta_padding: Option<u32>,
    words: Vec<f32>,
    positions: Vec<f32>,
    /// The embeddings of token types; a single text has type 0 alone.
    types: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pool: Arc<rayon::ThreadPool>,
    /// What computed blocks left behind, for those that come.
    arenas: Mutex<Vec<Scratch>>,
}

struct Layer {
    /// Queries, keys and values as one product: `(3 * hidden, hidden)`.
    qkv: Linear,
    attention_out: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    out_norm: LayerNorm,
}

/// Space for the intermediate results of one block of tokens.
#[derive(Default)]
struct Scratch {
    wide: Vec<f32>,
    context: Vec<f32>,
    attention: attention::Scratch,
    rounded: Rounded,
}

/// Whole sequences that go through the layers together.
struct Block<'a> {
    ids: &'a [u32],
    types: &'a [u8],
    lengths: &'a [usize],
    /// As long as `lengths`, or empty.
    attended: &'a [usize],
    /// The rows of their tokens; in the end, of [`Rows::First`] those of the sequences, then anything.
    hidden: &'a mut [f32],
}

/// What is asked of all blocks.
struct Task<'a> {
    rows: Rows,
    threads: Threads,
    cancel: &'a AtomicBool,
}

/// Reads tensors below a prefix.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
}

impl Source<'_> {
    fn at(&self, name: &str) -> Self {
        Self { checkpoint: self.checkpoint, prefix: format!("{}{name}.", self.prefix) }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.checkpoint.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// Returns the layer whose outputs are those of the layers `names`, one behind the other.
    fn linear(&self, names: &[&str], outputs: usize, inputs: usize, kernel: Kernel) -> Result<Linear> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            let at = self.at(name);
            weight.extend(at.tensor("weight", &[outputs, inputs])?);
            bias.extend(at.tensor("bias", &[outputs])?);
        }
        Linear::pack(&weight, &bias, inputs, kernel)
    }

    fn norm(&self, name: &str, width: usize, eps: f32) -> Result<LayerNorm> {
        let at = self.at(name);
        // Checkpoints converted from TensorFlow name them gamma and beta.
        let (weight, bias) =
            if self.checkpoint.has(&format!("{}gamma", at.prefix)) { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(LayerNorm { weight: at.tensor(weight, &[width])?, bias: at.tensor(bias, &[width])?, eps })
    }
}

impl Bert {
    fn load(checkpoint: &Checkpoint, precision: Precision, pool: Arc<rayon::ThreadPool>) -> Result<Self> {
        let place = checkpoint.dir().display();
        let config: Config = match serde_json::from_value(checkpoint.config().clone()) {
            Ok(config) => config,
            Err(e) => {
                let kind = checkpoint.config().get("model_type").and_then(|v| v.as_str()).unwrap_or("none");
                return unsupported!(
                    "{place}: config.json (model_type {kind:?}) is not that of a BERT, RoBERTa or XLM-RoBERTa encoder: {e}"
                );
            }
        };
        let roberta = match config.model_type.as_str() {
            "bert" => false,
            "roberta" | "xlm-roberta" | "camembert" => true,
            other => {
                return unsupported!(
                    "{place}: model_type {other:?}; supported encoders are bert, roberta, xlm-roberta and camembert"
                );
            }
        };
        if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return unsupported!("{place}: position_embedding_type {kind:?}; only \"absolute\" is supported");
        }
        let activation = match config.hidden_act.as_str() {
            "gelu" => Then::GeluErf,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Then::GeluTanh,
            "relu" => Then::Relu,
            other => return unsupported!("{place}: hidden_act {other:?}; supported are gelu, gelu_new and relu"),
        };
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || hidden == 0 || !hidden.is_multiple_of(heads) || config.type_vocab_size == 0 {
            return invalid!("{place}: hidden_size {hidden} does not split into num_attention_heads {heads}");
        }
        let padding = config.pad_token_id.unwrap_or(u32::from(roberta));
        let reserved = if roberta { padding as usize + 1 } else { 0 };
        let Some(context) = config.max_position_embeddings.checked_sub(reserved).filter(|n| *n > 0) else {
            return invalid!("{place}: max_position_embeddings {} leaves no position", config.max_position_embeddings);
        };
        let prefix = ["", "bert.", "roberta.", "model."]
            .into_iter()
            .find(|prefix| checkpoint.has(&format!("{prefix}embeddings.word_embeddings.weight")));
        let Some(prefix) = prefix else {
            return invalid!(
                "{place}: no tensor \"embeddings.word_embeddings.weight\"; the weights are not of this family"
            );
        };
        let source = Source { checkpoint, prefix: prefix.to_owned() };
        let embeddings = source.at("embeddings");
        let eps = config.layer_norm_eps;
        let layers = pool.install(|| {
            (0..config.num_hidden_layers)
                .into_par_iter()
                .map(|i| Layer::load(&source.at(&format!("encoder.layer.{i}")), &config, precision))
                .collect::<Result<_>>()
        })?;
        Ok(Self {
            hidden_size: hidden,
            heads: Heads { count: heads, dim: hidden / heads },
            activation,
            level: Level::best(),
            context,
            roberta_padding: roberta.then_some(padding),
            words: embeddings.tensor("word_embeddings.weight", &[config.vocab_size, hidden])?,
            positions: embeddings.tensor("position_embeddings.weight", &[config.max_position_embeddings, hidden])?,
            types: embeddings.tensor("token_type_embeddings.weight", &[config.type_vocab_size, hidden])?,
            norm: embeddings.norm("LayerNorm", hidden, eps)?,
            layers,
            pool,
            arenas: Mutex::default(),
        })
    }

    /// Fails where this model cannot read `batch`.
    fn check(&self, batch: &Batch) -> Result<()> {
        let total: usize = batch.lengths.iter().sum();
        if total != batch.ids.len() {
            return invalid!("the lengths of a batch add up to {total}, but it has {} ids", batch.ids.len());
        }
        if let Some(length) = batch.lengths.iter().find(|n| **n > self.context) {
            return invalid!("a sequence of {length} tokens; this model reads at most {}", self.context);
        }
        if !batch.types.is_empty() && batch.types.len() != total {
            return invalid!("a batch of {total} ids has {} token types", batch.types.len());
        }
        let types = self.types.len() / self.hidden_size;
        if let Some(kind) = batch.types.iter().find(|kind| usize::from(**kind) >= types) {
            return invalid!("token type {kind}: this model has {types}; its tokenizer does not fit");
        }
        let attended = &batch.attended;
        let fits = |(attended, length)| (1..=length).contains(&attended);
        if !attended.is_empty() {
            let pairs = attended.iter().copied().zip(batch.lengths.iter().copied());
            if attended.len() != batch.lengths.len() || !pairs.clone().all(fits) {
                return invalid!("of each sequence at least one token is attended to, and at most all");
            }
        }
        let vocabulary = self.words.len() / self.hidden_size;
        if let Some(id) = batch.ids.iter().find(|id| **id as usize >= vocabulary) {
            return invalid!(
                "token id {id}: this model's vocabulary has {vocabulary} entries; its tokenizer does not fit"
            );
        }
        Ok(())
    }

    /// Writes the embeddings of one sequence to `out`; `types` is empty where all are of type 0.
    fn embed(&self, ids: &[u32], types: &[u8], out: &mut [f32]) {
        let width = self.hidden_size;
        let row = |table: &'_ [f32], i: usize| -> Range<usize> {
            debug_assert!((i + 1) * width <= table.len());
            i * width..(i + 1) * width
        };
        let mut next = self.roberta_padding.map_or(0, |padding| padding + 1);
        for (i, (&id, out)) in ids.iter().zip(out.chunks_exact_mut(width)).enumerate() {
            let position = if Some(id) == self.roberta_padding {
                id
            } else {
                next += 1;
                next - 1
            };
            out.copy_from_slice(&self.words[row(&self.words, id as usize)]);
            accumulate(out, &self.types[row(&self.types, types.get(i).map_or(0, |kind| usize::from(*kind)))]);
            accumulate(out, &self.positions[row(&self.positions, position as usize)]);
        }
        layer_norm(self.level, out, &self.norm);
    }

    /// Runs whole sequences through all layers, in place in `block.hidden`; leaves it anyhow where `cancel` is set.
    fn run(&self, block: Block<'_>, task: &Task<'_>, scratch: &mut Scratch) {
        let Block { ids, types, lengths, attended, mut hidden } = block;
        let (width, tokens, threads) = (self.hidden_size, ids.len(), task.threads);
        let mut start = 0;
        for &length in lengths {
            let types = types.get(start..start + length).unwrap_or_default();
            self.embed(&ids[start..start + length], types, &mut hidden[start * width..(start + length) * width]);
            start += length;
        }
        // What lies in the scratch is written before it is read; growing it alone would clear it each time.
        let fit = |space: &mut Vec<f32>, numbers: usize| {
            if space.len() < numbers {
                space.resize(numbers, 0.0);
            }
        };
        let chunk = if threads == Threads::All { tokens } else { CHUNK_ROWS };
        let inner = self.layers.first().map_or(0, |layer| layer.up.outputs());
        fit(&mut scratch.wide, (tokens * 3 * width).max(chunk.min(tokens) * inner));
        fit(&mut scratch.context, tokens * width);
        let Scratch { wide, context, attention: room, rounded } = scratch;
        for (i, layer) in self.layers.iter().enumerate() {
            if task.cancel.load(Ordering::Relaxed) {
                return;
            }
            let qkv = &mut wide[..tokens * 3 * width];
            layer.qkv.apply(hidden, qkv, Then::Store, threads, rounded);
            // Of the last layer, other tokens are read as keys and values alone.
            let first_alone = task.rows == Rows::First && i + 1 == self.layers.len();
            let mut start = 0;
            for (i, &length) in lengths.iter().enumerate() {
                let rows = start * width..(start + length) * width;
                let queries = if first_alone { 1 } else { length };
                let keys = attended.get(i).copied().unwrap_or(length);
                let (out, qkv) = (&mut context[rows.clone()], &qkv[3 * rows.start..3 * rows.end]);
                attention(self.level, &mut out[..queries * width], qkv, keys, self.heads, room, threads);
                if first_alone {
                    context.copy_within(rows.start..rows.start + width, i * width);
                    hidden.copy_within(rows.start..rows.start + width, i * width);
                }
                start += length;
            }
            if first_alone {
                hidden = &mut hidden[..lengths.len() * width];
            }
            let chunks = hidden.chunks_mut(chunk * width);
            for (hidden, context) in chunks.zip(context.chunks(chunk * width)) {
                let context = &context[..hidden.len()];
                layer.attention_out.apply(context, hidden, Then::Add, threads, rounded);
                layer_norm(self.level, hidden, &layer.attention_norm);
                let wide = &mut wide[..hidden.len() / width * inner];
                layer.up.apply(hidden, wide, self.activation, threads, rounded);
                layer.down.apply(wide, hidden, Then::Add, threads, rounded);
                layer_norm(self.level, hidden, &layer.out_norm);
            }
        }
    }
}

impl Layer {
    fn load(source: &Source<'_>, config: &Config, precision: Precision) -> Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = source.at("attention");
        let kernel = Kernel::best(precision);
        // Rounded to bytes, queries and keys are half of what all layers lose. Measured on MiniLM.
        let finer = if precision == Precision::Int8 { Kernel::finer() } else { kernel };
        Ok(Self {
            qkv: attention.linear(&["self.query", "self.key", "self.value"], hidden, hidden, finer)?,
            attention_out: attention.linear(&["output.dense"], hidden, hidden, kernel)?,
            attention_norm: attention.norm("output.LayerNorm", hidden, eps)?,
            up: source.linear(&["intermediate.dense"], inner, hidden, kernel)?,
            down: source.linear(&["output.dense"], hidden, inner, kernel)?,
            out_norm: source.norm("output.LayerNorm", hidden, eps)?,
        })
    }
}

impl Encoder for Bert {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn context(&self) -> usize {
        self.context
    }

    fn token_types(&self) -> usize {
        self.types.len() / self.hidden_size
    }

    fn attends_in_part(&self) -> bool {
        true
    }

    fn encode(&self, batch: &Batch) -> Result<Tensor> {
        self.encode_rows(batch, Rows::All, &AtomicBool::new(false))
    }

    fn encode_rows(&self, batch: &Batch, rows: Rows, cancel: &AtomicBool) -> Result<Tensor> {
        self.check(batch)?;
        let (total, width) = (batch.ids.len(), self.hidden_size);
        let mut hidden = vec![0.0; total * width];
        let mut blocks = Vec::new();
        let (mut ids, mut lengths, mut rest) = (batch.ids.as_slice(), batch.lengths.as_slice(), hidden.as_mut_slice());
        let (mut types, mut attended) = (batch.types.as_slice(), batch.attended.as_slice());
        while !lengths.is_empty() {
            let (sequences, tokens) = next_block(lengths, total.div_ceil(self.pool.current_num_threads()));
            let (block_lengths, more_lengths) = lengths.split_at(sequences);
            let (block_ids, more_ids) = ids.split_at(tokens);
            let (block_types, more_types) = types.split_at(tokens.min(types.len()));
            let (block_attended, more_attended) = attended.split_at(sequences.min(attended.len()));
            let (block_hidden, more_hidden) = rest.split_at_mut(tokens * width);
            blocks.push(Block {
                ids: block_ids,
                types: block_types,
                lengths: block_lengths,
                attended: block_attended,
                hidden: block_hidden,
            });
            (ids, types, lengths, attended, rest) = (more_ids, more_types, more_lengths, more_attended, more_hidden);
        }
        let found: Vec<(usize, usize)> = blocks.iter().map(|block| (block.ids.len(), block.lengths.len())).collect();
        // One block cannot be shared out, so its products are.
        let threads = if blocks.len() == 1 { Threads::All } else { Threads::One };
        let task = Task { rows, threads, cancel };
        self.pool.install(|| {
            blocks.into_par_iter().for_each(|block| {
                // A panic while it is locked leaves a list as good as any other.
                let arenas = || self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
                let mut scratch = arenas().pop().unwrap_or_default();
                self.run(block, &task, &mut scratch);
                arenas().push(scratch);
            });
        });
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if rows == Rows::All {
            return Ok(Tensor::from_vec(hidden, (total, width), &Device::Cpu)?);
        }
        let (mut from, mut to) = (0, 0);
        for (tokens, sequences) in found {
            hidden.copy_within(from..from + sequences * width, to);
            from += tokens * width;
            to += sequences * width;
        }
        hidden.truncate(to);
        Ok(Tensor::from_vec(hidden, (batch.lengths.len(), width), &Device::Cpu)?)
    }
}

/// Returns how many sequences make the next block, and their tokens: at least one, then up to the budget, which is
/// smaller where that lets every thread have a block.
fn next_block(lengths: &[usize], fair_share: usize) -> (usize, usize) {
    let budget = BLOCK_TOKENS.min(fair_share);
    let (mut sequences, mut tokens) = (1, lengths[0]);
    while let Some(&length) = lengths.get(sequences).filter(|n| tokens + **n <= budget) {
        sequences += 1;
        tokens += length;
    }
    (sequences, tokens)
}
