//! Messages to a stream of text: template, tokenize, read, sample, detokenize.

mod answer;
mod engine;
mod generation;
mod load;
mod logprob;
mod lookup;
mod stop;
mod stream;
#[cfg(test)]
mod tests;

pub use generation::{Finish, Generation, GenerationStats, Next};
pub use load::EngineLoad;
pub use logprob::TokenLogprob;

use crate::checkpoint::Checkpoint;
use crate::device;
use crate::error::{Error, Result, invalid};
use crate::gguf::Gguf;
use crate::models::CausalLm;
use crate::models::decoder::{self, DecoderOptions, Quantize};
use crate::sampling::{Sampler, SamplingOptions};
use crate::schema::{Form, Schemas};
use crate::template::{Message, Template, Tokens};
use crate::tokenizer::Tokenizer;
use answer::Job;
use engine::Engine;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a generator is loaded.
#[derive(Debug, Clone, Default)]
pub struct GeneratorOptions {
    /// `"auto"`, `"cpu"` or `"cuda:N"`; empty is `"auto"`.
    pub device: String,
    /// How many threads compute; all that the cgroup grants by default.
    pub threads: Option<usize>,
    /// The most tokens of prompt and answer together; what the model was trained for by default.
    pub context: Option<usize>,
    /// How many answers are computed side by side, at most; 4 by default. The others wait for their turn.
    pub slots: Option<usize>,
    /// The most bytes that are kept of what was read of prompts, for prompts that begin alike; 256 MiB by default.
    pub prefix_bytes: Option<usize>,
    /// Directories of `LoRA` adapters, which are added to the weights of a directory of safetensors in this order.
    pub adapters: Vec<PathBuf>,
    /// What the matrices of a directory of safetensors are rounded to; as they are where it is `None`.
    pub quantize: Option<Quantize>,
}

/// How an answer is generated.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// The most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: SamplingOptions,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// What the answer begins with: part of the prompt, and of the output.
    pub prefix: String,
    /// With how many alternatives the log probability of each token is kept, at most 20; `None` keeps none.
    pub logprobs: Option<usize>,
    /// Whether what the answer repeats of earlier text is read several tokens at a time. The answer is the same either way.
    pub prompt_lookup: bool,
    /// A JSON schema, as JSON, that the answer keeps to; `{"type": "object"}` is any object.
    ///
    /// An answer that ends with [`Finish::Stop`] is whole; one that ends otherwise, as with [`Finish::Length`] or at a stop text,
    /// may be cut. Log probabilities are the model's own, as if there were no schema.
    pub schema: Option<String>,
    /// A regular expression that the whole answer matches; the rest is as for [`Self::schema`].
    pub pattern: Option<String>,
    /// Texts one of which is the answer; the rest is as for [`Self::schema`].
    pub choices: Option<Vec<String>>,
}

/// How many answers are computed side by side: as many as rows that the products take together.
const SLOTS: usize = 4;
const MAX_SLOTS: usize = 64;
/// The most alternatives to a token that are kept.
const MAX_LOGPROBS: usize = 20;

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 512,
            sampling: SamplingOptions::default(),
            stop: Vec::new(),
            prefix: String::new(),
            logprobs: None,
            prompt_lookup: true,
            schema: None,
            pattern: None,
            choices: None,
        }
    }
}

/// A model that writes. Shared freely between threads; each answer has a key-value cache of its own.
pub struct Generator {
    lm: Arc<dyn CausalLm>,
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    schemas: Schemas,
    /// What is wrong with the file's template, where something is: who completes raw prompts need not care.
    template: Option<std::result::Result<Template, String>>,
    architecture: String,
    threads: usize,
    device: String,
}

impl Generator {
    /// Loads a `.gguf` file, or a directory with `config.json`, `tokenizer.json` and safetensors.
    pub fn load(path: impl AsRef<Path>, options: &GeneratorOptions) -> Result<Self> {
        let device = device::accelerator(&options.device)?;
        let path = path.as_ref();
        let device_name = device::name(device.as_ref());
        let threads = device::threads(options.threads)?;
        let slots = match options.slots {
            None => SLOTS,
            Some(n @ 1..=MAX_SLOTS) => n,
            Some(n) => return invalid!("slots={n}: expected a number from 1 to {MAX_SLOTS}"),
        };
        let decoder_options = DecoderOptions {
            context: options.context,
            threads: Some(threads),
            prefix_bytes: options.prefix_bytes,
            adapters: options.adapters.clone(),
            quantize: options.quantize,
            device,
        };
        let (lm, tokenizer, source, architecture) = if path.is_dir() {
            let checkpoint = Arc::new(Checkpoint::open(path)?);
            let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
            let source = checkpoint_template(&checkpoint);
            let architecture =
                checkpoint.config().get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
            (decoder::from_checkpoint(checkpoint, &decoder_options)?, tokenizer, source, architecture)
        } else {
            let gguf = Arc::new(Gguf::open(path)?);
            let tokenizer = gguf.while_touched(|| Tokenizer::from_gguf(&gguf))?;
            let source = gguf.metadata.find::<&str>("tokenizer.chat_template").map(|source| source.map(str::to_owned));
            let architecture = gguf.metadata.str("general.architecture")?.to_owned();
            (decoder::from_gguf(gguf, &decoder_options)?, tokenizer, source, architecture)
        };
        if tokenizer.vocab_size() > lm.vocab_size() {
            return invalid!(
                "{}: the tokenizer has {} entries, the model {} logits; they do not belong together",
                path.display(),
                tokenizer.vocab_size(),
                lm.vocab_size()
            );
        }
        let compile = |source: &str| Template::new(source).map_err(|e| format!("{}: {e}", path.display()));
        let template = match source {
            Ok(source) => source.as_deref().map(compile),
            Err(e) => Some(Err(e.to_string())),
        };
        let engine = Engine::new(Arc::clone(&lm), slots);
        Ok(Self {
            lm,
            engine,
            tokenizer: Arc::new(tokenizer),
            schemas: Schemas::default(),
            template,
            architecture,
            threads,
            device: device_name,
        })
    }

    /// Returns the most tokens that prompt and answer may have together.
    pub fn context(&self) -> usize {
        self.lm.context()
    }

    /// Returns the number of logits.
    pub fn vocab_size(&self) -> usize {
        self.lm.vocab_size()
    }

    /// Returns the architecture's name, as the file says it.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Returns how many bytes are used by what is kept of prompts for prompts that begin alike.
    pub fn kept_bytes(&self) -> usize {
        self.lm.kept_bytes()
    }

    /// Returns how many answers wait, are read and are written now.
    pub fn engine_load(&self) -> EngineLoad {
        self.engine.load()
    }

    /// Returns what computes: `"cpu"` or `"cuda:N"`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns how many threads compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Starts the answer to a conversation.
    ///
    /// Fails where there are no messages, where the model has no chat template or it refuses them, where an option is out of
    /// range, where the schema, the pattern or the choices cannot be kept to or forbid the prefix, or where the prompt leaves no room in the context.
    pub fn generate(&self, messages: &[Message], options: GenerateOptions) -> Result<Generation> {
        self.answer(self.prompt(messages, &options.prefix)?, options)
    }

    /// Starts the answer to what [`Self::prompt`] returned with the prefix of these options.
    pub fn answer(&self, prompt: Vec<u32>, options: GenerateOptions) -> Result<Generation> {
        let trim_start = self.tokenizer.leading_space() && options.prefix.is_empty();
        self.start(prompt, options, trim_start)
    }

    /// Starts the continuation of a text, without a template. Control tokens in it are read as text.
    pub fn complete(&self, text: &str, options: GenerateOptions) -> Result<Generation> {
        if !options.prefix.is_empty() {
            return invalid!("prefix={:?}: a completion continues its prompt; put the prefix there", options.prefix);
        }
        let prompt = self.tokenizer.encode_prompt(text)?;
        if prompt.is_empty() {
            return invalid!("the prompt is empty, and this model has no start token");
        }
        self.start(prompt, options, false)
    }

    /// Returns what [`Self::generate`] reads for a conversation.
    pub fn prompt(&self, messages: &[Message], prefix: &str) -> Result<Vec<u32>> {
        if messages.is_empty() {
            return invalid!("no messages: at least one is needed");
        }
        let template = match &self.template {
            Some(Ok(template)) => template,
            Some(Err(problem)) => return invalid!("{problem}"),
            None => {
                return Err(Error::Unsupported(
                    "this model has no chat template, as base models have none; use complete()".into(),
                ));
            }
        };
        let shield = self.tokenizer.shield(messages.iter().map(|m| m.content.as_str()).chain([prefix]));
        let covered: Vec<Message> = messages.iter().map(|m| Message::new(m.role, shield.cover(&m.content))).collect();
        let tokens = Tokens { bos: self.tokenizer.bos_text(), eos: self.tokenizer.eos_text() };
        let mut rendered = template.render(&covered, tokens)?;
        rendered.push_str(&shield.cover(prefix));
        self.tokenizer.encode_rendered(&rendered, &shield)
    }

    /// Refuses options that no answer can be generated with, whatever the prompt.
    pub fn check(&self, options: &GenerateOptions) -> Result<()> {
        if options.max_tokens == 0 {
            return invalid!("max_tokens=0: at least one token is generated");
        }
        if options.stop.iter().any(String::is_empty) {
            return invalid!("stop: an empty text would end every answer before it begins");
        }
        if let Some(n) = options.logprobs.filter(|n| *n > MAX_LOGPROBS) {
            return invalid!("logprobs={n}: expected a number of alternatives from 0 to {MAX_LOGPROBS}");
        }
        Sampler::new(options.sampling.clone(), self.tokenizer.vocab_size()).map(drop)
    }

    fn start(&self, prompt: Vec<u32>, options: GenerateOptions, trim_start: bool) -> Result<Generation> {
        self.check(&options)?;
        let GenerateOptions { max_tokens, sampling, stop, prefix, logprobs, prompt_lookup, schema, pattern, choices } =
            options;
        if prompt.len() >= self.context() {
            return invalid!(
                "the prompt has {} tokens; this model reads {} of prompt and answer together",
                prompt.len(),
                self.context()
            );
        }
        let sampler = Sampler::new(sampling, self.tokenizer.vocab_size())?;
        let forms = [schema.map(Form::Schema), pattern.map(Form::Pattern), choices.map(Form::Choices)];
        let forms: Vec<Form> = forms.into_iter().flatten().collect();
        if let [one, other, ..] = &forms[..] {
            return invalid!("{} and {}: an answer keeps to one of them", one.name(), other.name());
        }
        let constraint = forms
            .first()
            .map(|form| self.schemas.constraint(form, &self.tokenizer, &prefix, trim_start))
            .transpose()?;
        self.engine.start(Job {
            tokenizer: Arc::clone(&self.tokenizer),
            prompt,
            prefix,
            sampler: sampler.constrained(constraint),
            stops: stop,
            max_tokens,
            logprobs,
            trim_start,
            prompt_lookup,
        })
    }
}

/// The chat template of a directory: a file of its own, or in `tokenizer_config.json`, there alone or as the one named "default".
fn checkpoint_template(checkpoint: &Checkpoint) -> Result<Option<String>> {
    let path = checkpoint.dir().join("chat_template.jinja");
    if path.is_file() {
        return std::fs::read_to_string(&path)
            .map(Some)
            .map_err(|e| Error::io(format!("reading {}", path.display()), e));
    }
    let path = checkpoint.dir().join("tokenizer_config.json");
    let config = checkpoint.json("tokenizer_config.json")?.unwrap_or_default();
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            match default.and_then(|entry| entry.get("template")?.as_str()) {
                Some(source) => Ok(Some(source.to_owned())),
                None => invalid!("{}: none of the chat templates is named \"default\"", path.display()),
            }
        }
        Some(_) => invalid!("{}: chat_template is neither a text nor a list of named texts", path.display()),
    }
}
