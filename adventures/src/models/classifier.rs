//! An encoder with a head that makes one number of a sequence.

use super::{Batch, Encoder, Rows, encoder};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::math::{LayerNorm, accumulate, layer_norm};
use crate::kernels::panels::{Kernel, Linear, Precision, Rounded, Then};
use crate::kernels::threads::Threads;
use crate::kernels::vector::Level;
use candle_core::Device;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where the models keep the layer before the last.
const DENSE: [&str; 5] =
    ["classifier.dense", "head.dense", "bert.pooler.dense", "new.pooler.dense", "gte.pooler.dense"];

/// A model for sequence classification with one label: of the first token, a layer, its tangent, and a layer of one output; of
/// ModernBERT a layer, its GELU, and a norm in between.
pub struct Classifier {
    encoder: Box<dyn Encoder>,
    /// Whether all tokens' mean is read, and not the first token.
    mean: bool,
    dense: Linear,
    /// ModernBERT's.
    norm: Option<LayerNorm>,
    out: Linear,
    level: Level,
}

impl Classifier {
    /// Loads the model; it computes on `pool`, and its layers on `device` where there is one.
    pub fn load(
        checkpoint: &Checkpoint,
        precision: Precision,
        pool: Arc<rayon::ThreadPool>,
        device: Option<&Device>,
    ) -> Result<Self> {
        let (place, config) = (checkpoint.dir().display(), checkpoint.config());
        let text = |field: &str| config.get(field).and_then(Value::as_str);
        let weight_of = |name: &str| format!("{name}.weight");
        let found = |name: &&str| checkpoint.has(&weight_of(name));
        let out = ["classifier.out_proj", "classifier"].into_iter().find(found);
        let (Some(out), Some(dense)) = (out, DENSE.into_iter().find(found)) else {
            let kind = text("model_type").unwrap_or("none");
            return unsupported!(
                "{place}: the weights (model_type {kind:?}) have no classifier; rerankers are encoders for sequence \
                 classification with one label, as BertForSequenceClassification"
            );
        };
        let labels = checkpoint.raw(&weight_of(out))?.shape.first().copied().unwrap_or(0);
        if labels != 1 {
            return invalid!("{place}: the classifier has {labels} labels; that of a reranker has one");
        }
        let modern = dense == "head.dense";
        let mean = match text("classifier_pooling").filter(|_| modern) {
            None | Some("cls") => false,
            Some("mean") => true,
            Some(other) => {
                return unsupported!("{place}: classifier_pooling {other:?}; supported are \"cls\" and \"mean\"");
            }
        };
        if let Some(other) = text("classifier_activation").filter(|name| modern && *name != "gelu") {
            return unsupported!("{place}: classifier_activation {other:?}; only \"gelu\" is supported");
        }
        let encoder = encoder::load(checkpoint, precision, pool, device)?;
        let width = encoder.hidden_size();
        let vector = |name: &str, zeros: bool| {
            if zeros && !checkpoint.has(name) { Ok(vec![0.0; width]) } else { checkpoint.tensor(name, &[width]) }
        };
        // Of few rows and little time, so nothing is rounded.
        let pack = |name: &str, bias: &[f32]| {
            let weight = checkpoint.tensor(&weight_of(name), &[bias.len(), width])?;
            Linear::pack(&weight, bias, width, Kernel::best(Precision::F32))
        };
        let norm = || -> Result<LayerNorm> {
            let eps = config.get("norm_eps").and_then(Value::as_f64).unwrap_or(1e-5) as f32;
            Ok(LayerNorm { weight: vector("head.norm.weight", false)?, bias: vector("head.norm.bias", true)?, eps })
        };
        Ok(Self {
            mean,
            // ModernBERT's may have no bias.
            dense: pack(dense, &vector(&format!("{dense}.bias"), modern)?)?,
            norm: if modern { Some(norm()?) } else { None },
            out: pack(out, &checkpoint.tensor(&format!("{out}.bias"), &[1])?)?,
            level: Level::best(),
            encoder,
        })
    }

    /// Returns how many tokens one sequence may have.
    pub fn context(&self) -> usize {
        self.encoder.context()
    }

    /// Returns how many types of tokens it tells apart.
    pub fn token_types(&self) -> usize {
        self.encoder.token_types()
    }

    /// Returns the logit of each sequence.
    pub fn score(&self, batch: &Batch, cancel: &AtomicBool) -> Result<Vec<f32>> {
        let rows = if self.mean { Rows::All } else { Rows::First };
        let mut read: Vec<f32> = self.encoder.encode_rows(batch, rows, cancel)?.flatten_all()?.to_vec1()?;
        if self.mean {
            read = means(&read, &batch.lengths, self.encoder.hidden_size());
        }
        let mut rounded = Rounded::new();
        let mut pooled = vec![0.0; read.len()];
        let then = if self.norm.is_some() { Then::GeluErf } else { Then::Store };
        self.dense.apply(&read, &mut pooled, then, Threads::One, &mut rounded);
        match &self.norm {
            Some(norm) => layer_norm(self.level, &mut pooled, norm),
            None => pooled.iter_mut().for_each(|x| *x = x.tanh()),
        }
        let mut logits = vec![0.0; batch.lengths.len()];
        self.out.apply(&pooled, &mut logits, Then::Store, Threads::One, &mut rounded);
        Ok(logits)
    }
}

/// Returns the means of rows that are `width` wide, of as many as each of `lengths` says.
fn means(rows: &[f32], lengths: &[usize], width: usize) -> Vec<f32> {
    let (mut found, mut rest) = (Vec::with_capacity(lengths.len() * width), rows);
    for &length in lengths {
        let (rows, more) = rest.split_at(length * width);
        let mut mean = vec![0.0; width];
        rows.chunks_exact(width).for_each(|row| accumulate(&mut mean, row));
        found.extend(mean.iter().map(|x| x / length as f32));
        rest = more;
    }
    found
}
