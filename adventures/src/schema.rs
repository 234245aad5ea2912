//! JSON schemas that an answer keeps to: which tokens may come next.
//!
//! llguidance reads the schema and walks the vocabulary's trie (<https://github.com/guidance-ai/llguidance>). Tokens are never
//! forced on the model: each is its own choice among those that the schema allows, so that a text is one that the model could
//! have written without.

use crate::error::{Error, Result, invalid, message};
use crate::tokenizer::Tokenizer;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

/// The longest schema, in bytes of JSON: twice what `OpenAI` takes.
const MAX_SCHEMA: usize = 256 << 10;
/// Schemas are untrusted, and llguidance follows their references by recursion: at most one level for each 20 bytes of
/// [`MAX_SCHEMA`], of some 4 KiB. Only what is used of it is ever taken from the machine.
const STACK: usize = 256 << 20;
/// What each space between the parts of a JSON text may be: small models indent for ever where nothing ends it.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";
/// The longest token that the trie holds, in bytes; its nodes have 10 bits for their depth.
const MAX_TOKEN: usize = 1000;
/// How many states a schema's lexer may have, of 1 to 2 KB each.
const MAX_STATES: usize = 50_000;

/// Reads schemas for one tokenizer. What that needs of the vocabulary is made at the first schema, and once.
#[derive(Default)]
pub(crate) struct Schemas {
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
}

impl Schemas {
    /// Returns what keeps an answer to `schema`, the JSON text of a JSON schema.
    ///
    /// `prefix` is how the answer begins. Where `trim_start`, a space at the start of the first token is none of the answer's.
    ///
    /// Fails where the schema is no such thing, is too large, uses what is not supported, or does not allow the prefix.
    pub(crate) fn constraint(
        &self,
        schema: &str,
        tokenizer: &Tokenizer,
        prefix: &str,
        trim_start: bool,
    ) -> Result<Constraint> {
        let schema = parse(schema)?;
        let work = || self.matcher(schema, tokenizer);
        let (env, matcher) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("schema".into()).stack_size(STACK).spawn_scoped(scope, work);
            let thread = thread.map_err(|e| Error::io("starting the thread that reads a schema", e))?;
            thread.join().unwrap_or_else(|panic| invalid!("schema: {}", message(&*panic)))
        })?;
        let mut constraint = Constraint { env, matcher, trim_start };
        if !prefix.is_empty() {
            constraint.read(prefix)?;
        }
        Ok(constraint)
    }

    fn matcher(&self, mut schema: Value, tokenizer: &Tokenizer) -> Result<(TokEnv, Matcher)> {
        let factory = self.factory.get_or_init(|| factory(tokenizer));
        let factory = factory.as_ref().map_err(|e| Error::Tokenizer(format!("no schema can be kept to: {e}")))?;
        let options =
            JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.into()), ..JsonCompileOptions::default() };
        options.apply_to(&mut schema);
        let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_json_schema(schema)));
        match matcher.get_error() {
            Some(problem) => Err(refused(problem)),
            None if matcher.is_stopped() => invalid!("schema: it allows no answer"),
            // The first mask costs the most, and shows whether the schema can be kept to at all.
            None => matcher.compute_mask_or_eos().map(|_| (Arc::clone(factory.tok_env()), matcher)).map_err(refused),
        }
    }
}

fn parse(schema: &str) -> Result<Value> {
    if schema.len() > MAX_SCHEMA {
        return invalid!("schema: it has {} bytes of JSON, at most {MAX_SCHEMA} are read", schema.len());
    }
    // The parser's own limit on nesting holds here: 128 levels.
    match serde_json::from_str(schema) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => invalid!("schema: expected a JSON object such as {{\"type\": \"object\"}}"),
        Err(e) => invalid!("schema: not JSON: {e}"),
    }
}

fn factory(tokenizer: &Tokenizer) -> std::result::Result<ParserFactory, String> {
    let ids = 0..tokenizer.vocab_size() as u32;
    let ends: Vec<u32> = ids.clone().filter(|id| tokenizer.is_end(*id)).collect();
    let Some(end) = ends.first() else {
        return Err("the tokenizer has no end token".into());
    };
    let words: Vec<Vec<u8>> = ids.map(|id| word(tokenizer, id).to_vec()).collect();
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, *end), &words).with_eos_tokens(&ends);
    // Not canonical: so that what a schema forces is still the model's to cut into tokens.
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::json_slices();
    let mut factory =
        ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(|e| problem(&e.to_string()))?;
    factory.quiet();
    *factory.limits_mut() =
        ParserLimits { max_lexer_states: MAX_STATES, verbose_errors: false, ..ParserLimits::default() };
    Ok(factory)
}

/// The bytes that `id` may be matched as; none for what is no text.
fn word(tokenizer: &Tokenizer, id: u32) -> &[u8] {
    let bytes = tokenizer.bytes(id);
    // The byte 0xFF is in no UTF-8; to llguidance it means that a control token follows.
    let text = !tokenizer.is_end(id) && bytes.len() <= MAX_TOKEN && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
    if text { bytes } else { b"" }
}

/// Where an answer is in its schema.
pub(crate) struct Constraint {
    env: TokEnv,
    matcher: Matcher,
    /// Whether the next token is the first, whose space at the start is none of the answer's.
    trim_start: bool,
}

impl Constraint {
    /// Makes the logits of all tokens that the schema does not allow next minus infinity: one for each token of the vocabulary.
    ///
    /// End tokens are allowed where the text is whole.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(refused)?;
        if self.trim_start {
            for id in allowed.to_list() {
                if let Some(spaced) = self.spaced(id) {
                    allowed.allow_token(spaced);
                }
            }
        }
        for (logits, bits) in logits.chunks_mut(32).zip(allowed.as_slice()) {
            match *bits {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                bits => {
                    for (i, x) in logits.iter_mut().enumerate().filter(|(i, _)| bits >> i & 1 == 0) {
                        debug_assert!(i < 32);
                        *x = f32::NEG_INFINITY;
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on by `id`, which the mask allowed.
    pub(crate) fn accept(&mut self, id: u32) -> Result<()> {
        let id = if std::mem::take(&mut self.trim_start) { self.unspaced(id) } else { id };
        self.matcher.consume_token(id).map_err(refused)
    }

    /// Returns whether the text is whole and nothing may follow.
    pub(crate) fn is_done(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Returns the token that is `id` with a space in front.
    fn spaced(&self, id: u32) -> Option<u32> {
        let trie = self.env.tok_trie();
        let bytes = trie.token(id);
        (!bytes.is_empty()).then(|| trie.token_id_at_bytes(&[b" ", bytes].concat())).flatten()
    }

    fn unspaced(&self, id: u32) -> u32 {
        let trie = self.env.tok_trie();
        trie.token(id).strip_prefix(b" ").and_then(|bytes| trie.token_id_at_bytes(bytes)).unwrap_or(id)
    }

    /// Goes on by the text that the answer begins with, however the model reads it.
    fn read(&mut self, prefix: &str) -> Result<()> {
        let trie = self.env.tok_trie();
        let ids = trie.greedy_tokenize(prefix.as_bytes());
        let known = trie.decode(&ids) == prefix.as_bytes();
        if !known || self.matcher.validate_tokens(&ids).map_err(refused)? < ids.len() {
            return invalid!("prefix={prefix:?}: the schema allows no answer that begins so");
        }
        self.matcher.consume_tokens(&ids).map_err(refused)
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("trim_start", &self.trim_start).finish_non_exhaustive()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn refused(error: impl ToString) -> Error {
    Error::Invalid(format!("schema: {}", problem(&error.to_string())))
}

/// The problem without the state and the backtrace that llguidance writes behind it.
fn problem(error: &str) -> String {
    let end = error.find("\n<").unwrap_or(error.len());
    error[..end].to_owned()
}
