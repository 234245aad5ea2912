//! A decoder as an encoder on a device; see [`super::super::bidirectional`].

use super::super::bidirectional::check;
use super::Model;
use super::pass::{self, Segment, Wanted};
use crate::error::{Result, invalid};
use crate::models::{Batch, Encoder};
use candle_core::{Device, Tensor};

/// The encoder that a decoder's weights make without the causal mask.
pub(super) struct Bidirectional(pub(super) Model);

impl Encoder for Bidirectional {
    fn hidden_size(&self) -> usize {
        self.0.config.hidden
    }

    fn context(&self) -> usize {
        self.0.context
    }

    fn encode(&self, batch: &Batch) -> Result<Tensor> {
        let width = self.0.config.hidden;
        check(batch, &self.0.config, self.0.context)?;
        if batch.ids.is_empty() {
            return Ok(Tensor::from_vec(Vec::<f32>::new(), (0, width), &Device::Cpu)?);
        }
        let segments = batch.lengths.iter().map(|tokens| Segment { cache: None, start: 0, tokens: *tokens });
        let hidden = pass::run(&self.0, &batch.ids, &segments.collect::<Vec<_>>(), Wanted::Hidden)?;
        let hidden = hidden.map_or_else(|| Ok(Vec::new()), |hidden| hidden.flatten_all()?.to_vec1::<f32>())?;
        if let Some(x) = hidden.iter().find(|x| !x.is_finite()) {
            return invalid!("the model computed {x} for a hidden state: its weights are damaged, or too large for it");
        }
        Ok(Tensor::from_vec(hidden, (batch.ids.len(), width), &Device::Cpu)?)
    }
}
