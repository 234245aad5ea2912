//! One decoder for the families of Llama, Mistral, Gemma and Qwen, on flat buffers.
//!
//! A [`config::Config`] says what differs between them: norms, activation, rotary positions, windows, caps. Weights stay in
//! their mapped files ([`weights`]), but for those that are changed when they are loaded ([`changes`]); each run owns its
//! cache ([`cache`]) and its scratch space ([`run`]). [`bidirectional`] is the same decoder as an encoder, and [`device`] is
//! both of them on an accelerator.

mod adapter;
mod attend;
mod bidirectional;
mod cache;
mod changes;
mod config;
mod device;
mod from_checkpoint;
mod from_gguf;
mod pass;
mod prefix;
mod rope;
mod run;
mod weights;

pub use changes::Quantize;

use super::{CausalLm, Encoder, Job, Run, Step};
use crate::checkpoint::Checkpoint;
use crate::error::{Result, invalid, unsupported};
use crate::gguf::Gguf;
use crate::kernels::paged::Number;
use cache::Shape;
use candle_core::Device;
use changes::Changes;
use config::Config;
use half::f16;
use prefix::Prefixes;
use rayon::prelude::*;
use rope::Rope;
use run::Reading;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weights::{Head, Source, Weights};

/// How a decoder is run.
#[derive(Debug, Clone, Default)]
pub struct DecoderOptions {
    /// The most positions that one run may read; the model's own where it is `None`.
    pub context: Option<usize>,
    /// How many threads compute; all that the cgroup grants where it is `None`.
    pub threads: Option<usize>,
    /// The most bytes of keys and values of prompts that are kept for prompts that begin alike; 256 MiB where it is `None`.
    pub prefix_bytes: Option<usize>,
    /// Directories of `LoRA` adapters, which are added to the weights in this order. The matrices that they change are kept
    /// in memory, in single precision where `quantize` does not say otherwise.
    pub adapters: Vec<PathBuf>,
    /// What the matrices are rounded to; as they are in the checkpoint where it is `None`.
    pub quantize: Option<Quantize>,
    /// What computes, on candle's tensors, with the weights copied to it; `None` is this crate's own kernels on the CPU.
    ///
    /// Not all options reach it: it keeps no prompts, and `threads` do no more than load.
    pub device: Option<Device>,
}

const PREFIX_BYTES: usize = 256 << 20;

/// Returns the decoder in a GGUF file; the weights stay where they lie in it.
///
/// Fails where the architecture, a tensor's type or its shape is not supported, and names it; and where `options` ask to
/// change the weights, which are rounded already.
pub fn from_gguf(gguf: Arc<Gguf>, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
    if let Some(adapter) = options.adapters.first() {
        return unsupported!(
            "{}: adapter {} cannot be merged into a GGUF file, whose weights are rounded; load the safetensors that it \
             was made from, with quantize= for as small a model",
            gguf.name(),
            adapter.display()
        );
    }
    if let Some(quantize) = options.quantize {
        return invalid!(
            "{}: quantize={:?} is for safetensors; the types of a GGUF file's weights are settled in it",
            gguf.name(),
            quantize.name()
        );
    }
    let config = from_gguf::config(&gguf)?;
    // llama.cpp uses the embedding as the head wherever a file has no head.
    load(&Source::Gguf(gguf), config, Head::Tied, options)
}

/// Returns the decoder in a directory of `config.json` and safetensors; the weights stay where they lie in it.
///
/// Fails where the architecture, a tensor's type or its shape is not supported, and names it.
pub fn from_checkpoint(checkpoint: Arc<Checkpoint>, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
    let (config, tied) = from_checkpoint::config(&checkpoint)?;
    let head = if tied { Head::Tied } else { Head::Own };
    load(&Source::Checkpoint(checkpoint), config, head, options)
}

/// Returns whether `config`, a `config.json`, is that of a decoder.
pub fn is_decoder(config: &Value) -> bool {
    config.get("model_type").and_then(Value::as_str).is_some_and(|name| config::Family::find(name).is_ok())
}

/// Returns the decoder in a directory of `config.json` and safetensors as an encoder: every token sees every other, as in
/// `LLM2Vec` (<https://arxiv.org/abs/2404.05961>).
///
/// The hidden states are those after the last norm. `pool` computes; `options.threads` is not looked at. Fails as
/// [`from_checkpoint`] does.
pub fn bidirectional(
    checkpoint: Arc<Checkpoint>,
    options: &DecoderOptions,
    pool: Arc<rayon::ThreadPool>,
) -> Result<Box<dyn Encoder>> {
    let (config, _) = from_checkpoint::config(&checkpoint)?;
    let source = Source::Checkpoint(checkpoint);
    if let Some(device) = &options.device {
        let context = context(&config, options)?;
        let weights = weights(&source, &config, Head::None, options, &pool)?;
        return device::encoder(config, &weights, device, context);
    }
    let model = Model::new(&source, config, Head::None, options, pool)?;
    Ok(Box::new(bidirectional::Bidirectional(model)))
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
    pool: Arc<rayon::ThreadPool>,
    context: usize,
}

fn load(source: &Source, config: Config, head: Head, options: &DecoderOptions) -> Result<Arc<dyn CausalLm>> {
    let pool = Arc::new(crate::device::pool(crate::device::threads(options.threads)?, "decoder")?);
    if let Some(device) = &options.device {
        let context = context(&config, options)?;
        let weights = weights(source, &config, head, options, &pool)?;
        return device::decoder(config, &weights, device, context);
    }
    let half = config.half;
    let model = Arc::new(Model::new(source, config, head, options, pool)?);
    let budget = options.prefix_bytes.unwrap_or(PREFIX_BYTES);
    Ok(if half { Arc::new(Decoder::<f16>::new(model, budget)) } else { Arc::new(Decoder::<f32>::new(model, budget)) })
}

/// Returns how many positions one run may read.
fn context(config: &Config, options: &DecoderOptions) -> Result<usize> {
    match options.context {
        None => Ok(config.context),
        Some(0) => invalid!("context=0: at least one position is needed"),
        Some(n) if n > config.context => invalid!("context={n}: the model was made for {} positions", config.context),
        Some(n) => Ok(n),
    }
}

/// Returns the tensors, changed as `options` ask for.
fn weights(
    source: &Source,
    config: &Config,
    head: Head,
    options: &DecoderOptions,
    pool: &rayon::ThreadPool,
) -> Result<Weights> {
    let changes = Changes::open(&options.adapters, options.quantize)?;
    pool.install(|| Weights::find(source, config, head, &changes))
}

impl Model {
    fn new(
        source: &Source,
        config: Config,
        head: Head,
        options: &DecoderOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self> {
        let context = context(&config, options)?;
        let weights = weights(source, &config, head, options, &pool)?;
        let ropes = [Rope::new(&config, &config.global), Rope::new(&config, &config.local)];
        let shape = config.cache_shape();
        Ok(Self { config, shape, weights, ropes, pool, context })
    }
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

    fn spread(&self, jobs: Vec<Job<'_>>) {
        self.model.pool.install(|| jobs.into_par_iter().with_max_len(1).for_each(|job| job()));
    }

    fn step(&self, steps: &mut [Step<'_>]) -> Vec<Result<Vec<Vec<f32>>>> {
        run::step::<N>(&self.model, steps)
    }
}
