//! One decoder for the families of Llama, Mistral, Gemma and Qwen, on flat buffers.
//!
//! A [`config::Config`] says what differs between them: norms, activation, rotary positions, windows, caps. Weights stay in
//! their mapped files ([`weights`]); each run owns its cache ([`cache`]) and its scratch space ([`run`]).

mod attend;
mod cache;
mod config;
mod from_checkpoint;
mod from_gguf;
mod pass;
mod prefix;
mod rope;
mod run;
mod weights;

use super::{CausalLm, Run, Step};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid};
use crate::gguf::Gguf;
use crate::kernels::paged::Number;
use cache::Shape;
use candle_core::Tensor;
use config::Config;
use half::f16;
use prefix::Prefixes;
use rope::Rope;
use run::Reading;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weights::{Source, Weights};

/// How a decoder is run.
#[derive(Debug, Clone, Default)]
pub struct DecoderOptions {
    /// The most positions that one run may read; the model's own where it is `None`.
    pub context: Option<usize>,
    /// How many threads compute; all that the cgroup grants where it is `None`.
    pub threads: Option<usize>,
    /// The most bytes of keys and values of prompts that are kept for prompts that begin alike; 256 MiB where it is `None`.
    pub prefix_bytes: Option<usize>,
}

const PREFIX_BYTES: usize = 256 << 20;

/// Returns the decoder in a GGUF file; the weights stay where they lie in it.
///
/// Fails where the architecture, a tensor's type or its shape is not supported, and names it.
pub fn from_gguf(gguf: Arc<Gguf>, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
    let config = from_gguf::config(&gguf)?;
    // llama.cpp uses the embedding as the head wherever a file has no head.
    load(&Source::Gguf(gguf), config, true, options)
}

/// Returns the decoder in a directory of `config.json` and safetensors; the weights stay where they lie in it.
///
/// Fails where the architecture, a tensor's type or its shape is not supported, and names it.
pub fn from_checkpoint(checkpoint: Arc<Checkpoint>, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
    let (config, tied) = from_checkpoint::config(&checkpoint)?;
    load(&Source::Checkpoint(checkpoint), config, tied, options)
}

/// A decoder whose weights are shared by its runs, which cache numbers of type `N`.
struct Decoder<N> {
    model: Arc<Model>,
    prefixes: Mutex<Prefixes<N>>,
}

struct Model {
    config: Config,
    /// Of the pages of each run's cache.
    shape: Shape,
    weights: Weights,
    /// Of layers that see everything, and of layers with a window.
    ropes: [Rope; 2],
    pool: rayon::ThreadPool,
    context: usize,
}

fn load(source: &Source, config: Config, tied: bool, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
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
    let half = config.half;
    let shape = config.cache_shape();
    let model = Arc::new(Model { config, shape, weights, ropes, pool, context });
    let budget = options.prefix_bytes.unwrap_or(PREFIX_BYTES);
    Ok(if half { Arc::new(Decoder::<f16>::new(model, budget)) } else { Arc::new(Decoder::<f32>::new(model, budget)) })
}

impl<N: Number> Decoder<N> {
    fn new(model: Arc<Model>, budget: usize) -> Self {
        let prefixes = Mutex::new(Prefixes::new(model.shape.clone(), budget));
        Self { model, prefixes }
    }

    fn prefixes(&self) -> MutexGuard<'_, Prefixes<N>> {
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<N: Number> CausalLm for Decoder<N> {
    fn context(&self) -> usize {
        self.model.context
    }

    fn vocab_size(&self) -> usize {
        self.model.config.vocab
    }

    fn start(&self) -> Box<dyn Run> {
        Box::new(Reading::<N>::new(self.model.clone(), Vec::new()))
    }

    fn resume(&self, prompt: &[u32]) -> Box<dyn Run> {
        let pages = self.prefixes().find(prompt);
        Box::new(Reading::new(self.model.clone(), pages))
    }

    fn keep(&self, run: &mut dyn Run, prompt: &[u32]) {
        if let Some(run) = run.as_any().downcast_ref::<Reading<N>>() {
            let pages = run.full_pages(prompt.len());
            self.prefixes().keep(prompt, pages);
        }
    }

    fn kept_bytes(&self) -> usize {
        self.prefixes().bytes()
    }

    fn step(&self, steps: &mut [Step<'_>]) -> Vec<Result<Tensor>> {
        run::step::<N>(&self.model, steps)
    }
}
