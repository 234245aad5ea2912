//! An encoder with a head that makes one number of a sequence.

use super::{Batch, Encoder, Rows, encoder};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::kernels::panels::{Kernel, Linear, Precision, Rounded, Then, Threads};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where the models keep the layer before the last: BERT's pooler, and the head of RoBERTa.
const DENSE: [&str; 4] = ["classifier.dense", "bert.pooler.dense", "pooler.dense", "roberta.pooler.dense"];

/// `BertForSequenceClassification` or `XLMRobertaForSequenceClassification` with one label.
pub struct Classifier {
    encoder: Box<dyn Encoder>,
    /// Of the first token, before its tangent.
    dense: Linear,
    out: Linear,
}

impl Classifier {
    /// Loads the model; it computes on `pool`.
    pub fn load(checkpoint: &Checkpoint, precision: Precision, pool: Arc<rayon::ThreadPool>) -> Result<Self> {
        let place = checkpoint.dir().display();
        let has = |name: &str| checkpoint.has(&format!("{name}.weight"));
        let out = ["classifier.out_proj", "classifier"].into_iter().find(|name| has(name));
        let dense = DENSE.into_iter().find(|name| has(name));
        let (Some(out), Some(dense)) = (out, dense) else {
            let kind = checkpoint.config().get("model_type").and_then(Value::as_str).unwrap_or("none");
            return unsupported!(
                "{place}: the weights (model_type {kind:?}) have no classifier; rerankers are \
                 BertForSequenceClassification or XLMRobertaForSequenceClassification with one label"
            );
        };
        let labels = checkpoint.raw(&format!("{out}.weight"))?.shape.first().copied().unwrap_or(0);
        if labels != 1 {
            return invalid!("{place}: the classifier has {labels} labels; that of a reranker has one");
        }
        let encoder = encoder::load(checkpoint, precision, pool)?;
        let width = encoder.hidden_size();
        let linear = |name: &str, outputs: usize| {
            let weight = checkpoint.tensor(&format!("{name}.weight"), &[outputs, width])?;
            let bias = checkpoint.tensor(&format!("{name}.bias"), &[outputs])?;
            Linear::pack(&weight, &bias, width, Kernel::best(Precision::F32))
        };
        Ok(Self { dense: linear(dense, width)?, out: linear(out, 1)?, encoder })
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
        let first: Vec<f32> = self.encoder.encode_rows(batch, Rows::First, cancel)?.flatten_all()?.to_vec1()?;
        let mut rounded = Rounded::new();
        let mut pooled = vec![0.0; first.len()];
        self.dense.apply(&first, &mut pooled, Then::Store, Threads::One, &mut rounded);
        for x in &mut pooled {
            *x = x.tanh();
        }
        let mut logits = vec![0.0; batch.lengths.len()];
        self.out.apply(&pooled, &mut logits, Then::Store, Threads::One, &mut rounded);
        Ok(logits)
    }
}
