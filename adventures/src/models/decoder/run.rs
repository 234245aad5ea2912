//! One reading of a text, with a cache of its own; and several that are read together.

use super::Model;
use super::cache::{self, Page};
use super::pass::{Buffers, Pass, Passed, Segment, Together};
use crate::error::{Error, Result, invalid};
use crate::kernels::paged::{Number, PAGE};
use crate::models::{Run, Step};
use candle_core::{Device, Tensor};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Tokens that go through the layers together: enough to hide the unpacking of weights, few enough to stay in cache.
/// Whole fours, so that rows are grouped as in one product of all of them.
const CHUNK: usize = 256;

/// The cache and the scratch space of one run.
pub(super) struct Reading<N> {
    model: Arc<Model>,
    /// Shared where another run began with the same tokens.
    pages: Vec<Page<N>>,
    len: usize,
    buffers: Buffers,
}

impl<N: Number> Reading<N> {
    /// Returns a run that has read the tokens of `pages`, which are full.
    pub(super) fn new(model: Arc<Model>, pages: Vec<Page<N>>) -> Self {
        let len = pages.len() * PAGE;
        Self { model, pages, len, buffers: Buffers::default() }
    }

    /// Returns the pages that the first `len` tokens fill.
    pub(super) fn full_pages(&self, len: usize) -> &[Page<N>] {
        &self.pages[..len.min(self.len) / PAGE]
    }

    /// Fails where `ids` cannot be read.
    fn check(&self, ids: &[u32]) -> Result<()> {
        check(ids, self.len, self.model.config.vocab, self.model.context)
    }

    /// Adds pages for `tokens` more; returns where they go.
    fn segment(&mut self, tokens: usize) -> Segment<'_, N> {
        while self.pages.len() * PAGE < self.len + tokens {
            self.pages.push(Page::new(&self.model.shape));
        }
        Segment { pages: &mut self.pages, start: self.len, tokens }
    }

    /// The logits after `ids`; `None` where it was cancelled.
    fn compute(&mut self, ids: &[u32], cancel: &AtomicBool) -> Option<Vec<f32>> {
        let model = Arc::clone(&self.model);
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut segment = self.segment(ids.len());
        let mut passed = Passed::Filled;
        let start = segment.start;
        for (i, chunk) in ids.chunks(CHUNK).enumerate() {
            segment.start = start + i * CHUNK;
            segment.tokens = chunk.len();
            let end = i * CHUNK + chunk.len();
            let together = match ids.len() {
                1 => Together::Alone,
                _ => Together::Read { batch: end, last: end == ids.len() },
            };
            let mut pass = Pass::new(&model, std::slice::from_mut(&mut segment), &mut buffers, together);
            passed = pass.layers(chunk, cancel);
            if matches!(passed, Passed::Cancelled) {
                break;
            }
        }
        self.buffers = buffers;
        match passed {
            Passed::Logits(logits) => Some(logits),
            Passed::Filled | Passed::Cancelled => None,
        }
    }

    /// Leaves nothing of tokens that are not taken into the text: what was written must not meet later weights of 0.
    fn forget(&mut self) {
        self.pages.truncate(self.len.div_ceil(PAGE));
        if !self.len.is_multiple_of(PAGE) {
            self.pages[self.len / PAGE].clear_from(&self.model.shape, self.len % PAGE);
        }
    }

    /// Takes `tokens` that were read into the text, or forgets them where what they led to is no number.
    fn finish(&mut self, tokens: usize, logits: &[f32]) -> Result<()> {
        // By whole pieces, which the compiler compares sixteen numbers of at once.
        let broken = |piece: &&[f32]| piece.iter().fold(false, |broken, x| broken | !x.is_finite());
        if let Some(logit) = logits.chunks(1024).find(broken).and_then(|piece| piece.iter().find(|x| !x.is_finite())) {
            self.forget();
            return invalid!("the model computed {logit} for a logit: its weights are damaged, or too large for it");
        }
        self.len += tokens;
        cache::forget(&self.model.shape, &mut self.pages, self.len);
        Ok(())
    }
}

/// Fails where `ids` cannot be read after `len` tokens.
pub(super) fn check(ids: &[u32], len: usize, vocab: usize, context: usize) -> Result<()> {
    if ids.is_empty() {
        return invalid!("no tokens to read");
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return invalid!("token {id} is outside of the vocabulary of {vocab}");
    }
    if ids.len() > context - len {
        return invalid!("{} tokens after {len} do not fit the context of {context} tokens", ids.len());
    }
    Ok(())
}

impl<N: Number> Run for Reading<N> {
    fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
        self.read_unless(ids, &AtomicBool::new(false))
    }

    fn read_unless(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<Tensor> {
        self.check(ids)?;
        let model = self.model.clone();
        let Some(logits) = model.pool.install(|| self.compute(ids, cancel)) else {
            self.forget();
            return Err(Error::Cancelled);
        };
        self.finish(ids.len(), &logits)?;
        Ok(Tensor::from_vec(logits, model.config.vocab, &Device::Cpu)?)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return invalid!("cannot rewind to {len} tokens, {} have been read", self.len);
        }
        let full = len.div_ceil(PAGE);
        if !self.model.shape.complete(&self.pages[..full], len) {
            return invalid!("cannot rewind to {len} of {} tokens: what a window saw there is forgotten", self.len);
        }
        self.len = len;
        self.pages.truncate(full);
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// Reads the tokens of several runs of one model in one pass; see [`crate::models::CausalLm::step`].
pub(super) fn step<N: Number>(model: &Arc<Model>, steps: &mut [Step<'_>]) -> Vec<Result<Vec<Vec<f32>>>> {
    let (vocab, mut ids) = (model.config.vocab, Vec::new());
    let mut runs: Vec<Result<(&mut Reading<N>, usize)>> = Vec::with_capacity(steps.len());
    for step in steps {
        let tokens = step.ids;
        runs.push(match step.run.as_any().downcast_mut::<Reading<N>>() {
            Some(run) if Arc::ptr_eq(&run.model, model) => run.check(tokens).map(|()| {
                ids.extend_from_slice(tokens);
                (run, tokens.len())
            }),
            _ => invalid!("the run is of another model"),
        });
    }
    if ids.is_empty() {
        return runs.into_iter().map(|run| run.map(|_| unreachable!("each failed; this is a bug"))).collect();
    }
    // Any run's scratch space will do.
    let mut buffers = runs
        .iter_mut()
        .find_map(|run| run.as_mut().ok())
        .map_or_else(Buffers::default, |(run, _)| std::mem::take(&mut run.buffers));
    let logits = {
        let mut segments: Vec<_> = runs.iter_mut().flatten().map(|(run, tokens)| run.segment(*tokens)).collect();
        let mut pass = Pass::new(model, &mut segments, &mut buffers, Together::Alone);
        match model.pool.install(|| pass.layers(&ids, &AtomicBool::new(false))) {
            Passed::Logits(logits) => logits,
            Passed::Filled | Passed::Cancelled => {
                unreachable!("each token has logits, and nobody cancels; this is a bug")
            }
        }
    };
    let mut rest = logits.as_slice();
    let mut out = Vec::with_capacity(runs.len());
    for run in runs {
        out.push(run.and_then(|(run, tokens)| {
            let own = rest.split_off(..tokens * vocab).unwrap_or_default();
            run.buffers = std::mem::take(&mut buffers);
            run.finish(tokens, own)?;
            Ok(own.chunks_exact(vocab).map(<[f32]>::to_vec).collect())
        }));
    }
    out
}
