//! The text path of `LLM2Vec` (<https://arxiv.org/abs/2404.05961>): what of a text its models read, and what is pooled.
//!
//! Follows `llm2vec/llm2vec.py` of <https://github.com/McGill-NLP/llm2vec>: a long text is cut between words, the instruction
//! goes before it, both go where the model's chat format has the user's turn, and the mean is over the tokens of the text and
//! of what closes the turn.

use super::EmbedderOptions;
use crate::checkpoint::{Checkpoint, read_json};
use crate::error::{Result, unsupported};
use crate::models::decoder;
use serde_json::Value;
use std::path::PathBuf;

/// How long a text is cut to in tokens, before the instruction and the turn are added.
const DOC_MAX_LENGTH: u64 = 400;
/// How many tokens the model reads in all.
const MAX_LENGTH: u64 = 512;

/// What is put before and after a text, by the name of the model that it was trained with. Others read the text alone.
const TURNS: [(&str, &str, &str); 6] = [
    ("Mistral-7B-Instruct-v0.2", "[INST] ", " [/INST]"),
    ("Llama-2-7b-chat-hf", "[INST] ", " [/INST]"),
    ("Meta-Llama-3-8B-Instruct", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    ("gemma-2-9b-it", "<bos><start_of_turn>user\n", "<end_of_turn>"),
    ("Qwen2-1.5B-Instruct", "<|im_start|>user\n", "<|im_end|>"),
    ("Qwen2-7B-Instruct", "<|im_start|>user\n", "<|im_end|>"),
];

/// How a text is read.
#[derive(Debug, Clone)]
pub(super) struct TextPath {
    /// What opens and closes the user's turn; `None` where the model knows no turns.
    turn: Option<(&'static str, &'static str)>,
    /// How many tokens of a text are kept.
    pub(super) doc_max: usize,
    /// How many tokens are read in all.
    pub(super) max: usize,
    /// Whether the mean is over all tokens.
    pools_all: bool,
}

/// One text as the model reads it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Framed {
    /// All of it.
    pub(super) whole: String,
    /// Its end, over whose tokens the mean is; `None` for all.
    pub(super) pooled: Option<String>,
}

impl TextPath {
    /// Returns how an `LLM2Vec` model reads a text; `None` for an encoder, which takes no adapters.
    pub(super) fn find(checkpoint: &Checkpoint, options: &EmbedderOptions) -> Result<Option<Self>> {
        let place = checkpoint.dir().display();
        let kind = checkpoint.config().get("model_type").and_then(Value::as_str).unwrap_or_default();
        if !decoder::is_decoder(checkpoint.config()) {
            if let Some(adapter) = options.adapters.first() {
                return unsupported!(
                    "{place}: adapter {} cannot be merged into an encoder (model_type {kind:?})",
                    adapter.display()
                );
            }
            if let Some(quantize) = options.quantize {
                return unsupported!("{place}: quantize={:?} is for decoders, not for {kind:?}", quantize.name());
            }
            return Ok(None);
        }
        if options.adapters.is_empty() && checkpoint.json("llm2vec_config.json")?.is_none() {
            return unsupported!(
                "{place}: model_type {kind:?} writes; it becomes an embedder by the adapters of LLM2Vec"
            );
        }
        Self::read(checkpoint, &options.adapters).map(Some)
    }

    /// Reads `llm2vec_config.json` of the last adapter that has one, else of the model.
    fn read(checkpoint: &Checkpoint, adapters: &[PathBuf]) -> Result<Self> {
        let mut config = Value::Null;
        let mut place = checkpoint.dir();
        for dir in adapters.iter().rev().map(PathBuf::as_path).chain([checkpoint.dir()]) {
            if let Some(found) = read_json(&dir.join("llm2vec_config.json"))? {
                (config, place) = (found, dir);
                break;
            }
        }
        let mode = config.get("pooling_mode").and_then(Value::as_str).unwrap_or("mean");
        if mode != "mean" {
            return unsupported!("{}: pooling_mode {mode:?}; supported is \"mean\"", place.display());
        }
        let size = |name: &str, default| config.get(name).and_then(Value::as_u64).unwrap_or(default) as usize;
        let mut names = Vec::new();
        for dir in adapters {
            let text = |file: &str, key: &str| -> Result<Option<String>> {
                Ok(read_json(&dir.join(file))?.and_then(|json| Some(json.get(key)?.as_str()?.to_owned())))
            };
            names.extend(text("config.json", "_name_or_path")?);
            names.extend(text("adapter_config.json", "base_model_name_or_path")?);
        }
        names.extend(checkpoint.config().get("_name_or_path").and_then(Value::as_str).map(str::to_owned));
        let turn = names.iter().find_map(|name| {
            let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            TURNS.iter().find(|(model, ..)| model.eq_ignore_ascii_case(last))
        });
        Ok(Self {
            turn: turn.map(|(_, open, close)| (*open, *close)),
            doc_max: size("doc_max_length", DOC_MAX_LENGTH),
            max: size("max_length", MAX_LENGTH),
            pools_all: config.get("skip_instruction").and_then(Value::as_bool) == Some(false),
        })
    }

    /// Returns the same within `max` tokens.
    pub(super) fn within(self, max: usize) -> Self {
        Self { max, doc_max: self.doc_max.min(max), ..self }
    }

    /// Returns `text`, cut before, behind its instruction and inside the turn.
    pub(super) fn frame(&self, instruction: &str, text: &str) -> Framed {
        let open = if instruction.is_empty() { String::new() } else { format!("{} ", strip(instruction)) };
        // LLM2Vec strips instruction, separator and text together.
        let (whole, end) = match self.turn {
            None => (format!("{open}{text}"), text.to_owned()),
            Some((before, after)) => {
                let text = text.trim_end_matches(is_space);
                (format!("{before}{}{text}{after}", open.trim_start_matches(is_space)), format!("{text}{after}"))
            }
        };
        Framed { whole, pooled: (!self.pools_all).then_some(end) }
    }

    /// Returns the first words of `text`, as many as `count` says are at most [`Self::doc_max`] tokens; `None` where that is
    /// all of it. `count` may stop at [`Self::max`].
    pub(super) fn shorten(&self, text: &str, count: impl Fn(&str) -> Result<usize>) -> Result<Option<String>> {
        let mut length = count(text)?.min(self.max);
        if length <= self.doc_max {
            return Ok(None);
        }
        let mut words: Vec<&str> = text.split(is_space).filter(|word| !word.is_empty()).collect();
        loop {
            let share = self.doc_max as f64 / length as f64;
            // Fewer each time, as the share is less than 1.
            words.truncate((words.len() as f64 * share) as usize);
            let shorter = words.join(" ");
            length = count(&shorter)?.min(self.max);
            if length <= self.doc_max || words.is_empty() {
                return Ok(Some(shorter));
            }
        }
    }
}

fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// White space as Python's `str` has it: also the separators of files, groups, records and units.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistral() -> TextPath {
        TextPath { turn: Some(("[INST] ", " [/INST]")), doc_max: 4, max: 6, pools_all: false }
    }

    #[test]
    fn the_turn_is_that_of_llm2vec() {
        let framed = |instruction, text| {
            let Framed { whole, pooled } = mistral().frame(instruction, text);
            (whole, pooled.expect("a part is pooled"))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(framed("", "a rope"), pair("[INST] a rope [/INST]", "a rope [/INST]"));
        assert_eq!(framed("", "  a rope \x1f\n"), pair("[INST]   a rope [/INST]", "  a rope [/INST]"));
        assert_eq!(framed(" find: ", "a rope"), pair("[INST] find: a rope [/INST]", "a rope [/INST]"));
        assert_eq!(framed("", ""), pair("[INST]  [/INST]", " [/INST]"));
        let plain = TextPath { turn: None, ..mistral() };
        assert_eq!(plain.frame("find:", " a rope ").whole, "find:  a rope ");
        assert_eq!(TextPath { pools_all: true, ..mistral() }.frame("", "a").pooled, None);
    }

    #[test]
    fn long_texts_are_cut_between_words() {
        let words = |text: &str| Ok(text.split(' ').filter(|word| !word.is_empty()).count());
        assert_eq!(mistral().shorten("a b c  d", words).expect("it counts"), None);
        // Ten words count as six: two thirds of ten are six, and two thirds of six are four.
        assert_eq!(mistral().shorten("a b c d e\tf g h  i j k", words).expect("it counts").as_deref(), Some("a b c d"));
        let letters = |text: &str| Ok(text.len());
        assert_eq!(mistral().shorten("abcdefghij", letters).expect("it counts").as_deref(), Some(""));
    }
}
