//! One reading of a text on a device, with a cache of its own; and several that are read together.

use super::Model;
use super::cache::Cache;
use super::pass::{self, Segment, Wanted};
use crate::error::{Error, Result, invalid};
use crate::models::tensors::MOST_SCORES;
use crate::models::{Run, Step};
use candle_core::{DType, Device, Tensor};
use std::any::Any;
use std::sync::Arc;

/// The most tokens that go through the layers together: enough to fill the matrix products.
const CHUNK: usize = 512;

/// The cache of one run.
pub(super) struct Reading {
    model: Arc<Model>,
    cache: Cache,
    len: usize,
}

impl Reading {
    pub(super) fn new(model: Arc<Model>) -> Self {
        Self { model, cache: Cache::default(), len: 0 }
    }

    /// Makes room for `ids`; fails where they cannot be read.
    fn prepare(&mut self, ids: &[u32]) -> Result<()> {
        super::super::run::check(ids, self.len, self.model.config.vocab, self.model.context)?;
        self.cache.reserve(&self.model, self.len + ids.len(), self.len)
    }

    fn segment(&self, start: usize, tokens: usize) -> Segment<'_> {
        Segment { cache: Some(&self.cache), start, tokens }
    }

    /// Returns the logits after `ids`.
    fn compute(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut start = 0;
        loop {
            // Fewer at a time where there is more to see.
            let most = MOST_SCORES / self.model.config.heads / (self.len + start + CHUNK);
            let end = ids.len().min(start + most.clamp(1, CHUNK));
            let segment = self.segment(self.len + start, end - start);
            let wanted = if end == ids.len() { Wanted::Last } else { Wanted::Nothing };
            if let Some(logits) = pass::run(&self.model, &ids[start..end], &[segment], wanted)? {
                return Ok(logits.flatten_all()?.to_vec1()?);
            }
            start = end;
        }
    }
}

/// Fails where what a pass led to is no number.
fn check_finite(logits: &[f32]) -> Result<()> {
    match logits.iter().find(|x| !x.is_finite()) {
        Some(logit) => {
            invalid!("the model computed {logit} for a logit: its weights are damaged, or too large for it")
        }
        None => Ok(()),
    }
}

impl Run for Reading {
    fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
        self.prepare(ids)?;
        let logits = self.compute(ids)?;
        check_finite(&logits)?;
        self.len += ids.len();
        Ok(Tensor::from_vec(logits, self.model.config.vocab, &Device::Cpu)?)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return invalid!("cannot rewind to {len} tokens, {} have been read", self.len);
        }
        self.len = len;
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// Reads the tokens of several runs of one model in one pass; see [`crate::models::CausalLm::step`].
pub(super) fn step(model: &Arc<Model>, steps: &mut [Step<'_>]) -> Vec<Result<Vec<Vec<f32>>>> {
    let rows = |logits: Tensor| -> Result<Vec<Result<Vec<f32>>>> {
        let rows: Vec<Vec<f32>> = logits.to_vec2()?;
        Ok(rows.into_iter().map(|row| check_finite(&row).map(|()| row)).collect())
    };
    together(model, steps, rows)
}

/// The same for the highest logits: two numbers of each row are copied from the device.
pub(super) fn step_best(model: &Arc<Model>, steps: &mut [Step<'_>], vocab: usize) -> Vec<Result<Vec<u32>>> {
    let rows = |logits: Tensor| -> Result<Vec<Result<u32>>> {
        // Ids are whole in single precision, as vocabularies are below 2^24. A sum is no number where a logit is none.
        let logits = logits.narrow(1, 0, vocab.min(logits.dim(1)?))?.contiguous()?;
        let best = logits.argmax_keepdim(1)?.to_dtype(DType::F32)?;
        let found: Vec<Vec<f32>> = Tensor::cat(&[best, logits.sum_keepdim(1)?], 1)?.to_vec2()?;
        Ok(found.iter().map(|row| check_finite(row).map(|()| row[0] as u32)).collect())
    };
    together(model, steps, rows)
}

/// Reads the tokens of several runs of one model in one pass; returns what `rows` makes of the logits, a row for each token.
fn together<T>(
    model: &Arc<Model>,
    steps: &mut [Step<'_>],
    rows: impl FnOnce(Tensor) -> Result<Vec<Result<T>>>,
) -> Vec<Result<Vec<T>>> {
    let mut ids = Vec::new();
    let mut runs: Vec<Result<(&mut Reading, usize)>> = Vec::with_capacity(steps.len());
    for step in steps {
        let tokens = step.ids;
        runs.push(match step.run.as_any().downcast_mut::<Reading>() {
            Some(run) if Arc::ptr_eq(&run.model, model) => run.prepare(tokens).map(|()| {
                ids.extend_from_slice(tokens);
                (run, tokens.len())
            }),
            _ => invalid!("the run is of another model"),
        });
    }
    let segments: Vec<_> = runs.iter().flatten().map(|(run, tokens)| run.segment(run.len, *tokens)).collect();
    let found = if segments.is_empty() {
        Ok(Vec::new())
    } else {
        pass::run(model, &ids, &segments, Wanted::Each).and_then(|logits| logits.map_or_else(|| Ok(Vec::new()), rows))
    };
    drop(segments);
    let mut rest = match found {
        Ok(rows) => rows.into_iter(),
        Err(e) => {
            let problem = || Error::Model(candle_core::Error::Msg(e.to_string()));
            return runs.into_iter().map(|run| run.and_then(|_| Err(problem()))).collect();
        }
    };
    let finish = |run: Result<(&mut Reading, usize)>| {
        let (run, tokens) = run?;
        // All of its rows are taken, whichever of them fails.
        let own: Vec<Result<T>> = rest.by_ref().take(tokens).collect();
        let own = own.into_iter().collect::<Result<Vec<T>>>()?;
        run.len += tokens;
        Ok(own)
    };
    runs.into_iter().map(finish).collect()
}
