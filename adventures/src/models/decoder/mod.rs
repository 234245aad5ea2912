//! One decoder for the families of Llama, Mistral, Gemma and Qwen, on flat buffers.
//!
//! A [`config::Config`] says what differs between them: norms, activation, rotary positions, windows, caps. Weights stay in
//! their mapped files ([`weights`]); each run owns its cache ([`cache`]) and its scratch space ([`run`]).

mod cache;
mod config;
mod from_checkpoint;
mod from_gguf;
mod rope;
mod run;
mod weights;

use super::{CausalLm, Run};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid};
use crate::gguf::Gguf;
use config::Config;
use half::f16;
use rope::Rope;
use std::sync::Arc;
use weights::{Source, Weights};

/// How a decoder is run.
#[derive(Debug, Clone, Default)]
pub struct DecoderOptions {
    /// The most positions that one run may read; the model's own where it is `None`.
    pub context: Option<usize>,
    /// How many threads compute; all that the cgroup grants where it is `None`.
    pub threads: Option<usize>,
}

/// Returns the decoder in a GGUF file; the weights stay where they lie in it.
///
/// Fails where the architecture, a tensor's type or its shape is not supported, and names it.
pub fn from_gguf(gguf: Arc<Gguf>, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
    let config = from_gguf::config(&gguf)?;
    // llama.cpp uses the embedding as the head wherever a file has no head.
    Ok(Arc::new(Decoder::new(&Source::Gguf(gguf), config, true, options)?))
}

/// Returns the decoder in a directory of `config.json` and safetensors; the weights stay where they lie in it.
///
/// Fails where the architecture, a tensor's type or its shape is not supported, and names it.
pub fn from_checkpoint(checkpoint: Arc<Checkpoint>, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
    let (config, tied) = from_checkpoint::config(&checkpoint)?;
    Ok(Arc::new(Decoder::new(&Source::Checkpoint(checkpoint), config, tied, options)?))
}

/// A decoder whose weights are shared by its runs.
struct Decoder(Arc<Model>);

struct Model {
    config: Config,
    weights: Weights,
    /// Of layers that see everything, and of layers with a window.
    ropes: [Rope; 2],
    pool: rayon::ThreadPool,
    context: usize,
}

impl Decoder {
    fn new(source: &Source, config: Config, tied: bool, options: &DecoderOptions) -> Result<Self> {
        let context = match options.context {
            None => config.context,
            Some(0) => return invalid!("context=0: at least one position is needed"),
            Some(n) if n > config.context => {
                return invalid!("context={n}: the model was made for {} positions", config.context);
            }
            Some(n) => n,
        };
        let weights = Weights::find(source, &config, tied)?;
        let ropes = [Rope::new(&config, &config.global), Rope::new(&config, &config.local)];
        let pool = crate::device::pool(crate::device::threads(options.threads)?, "decoder")?;
        Ok(Self(Arc::new(Model { config, weights, ropes, pool, context })))
    }
}

impl CausalLm for Decoder {
    fn context(&self) -> usize {
        self.0.context
    }

    fn vocab_size(&self) -> usize {
        self.0.config.vocab
    }

    fn start(&self) -> Box<dyn Run> {
        if self.0.config.half {
            Box::new(run::Reading::<f16>::new(self.0.clone()))
        } else {
            Box::new(run::Reading::<f32>::new(self.0.clone()))
        }
    }
}
