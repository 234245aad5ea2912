//! Text to token ids and back, for models that generate.
//!
//! Text that people or documents wrote is data: [`Tokenizer::encode`] reads it without ever yielding a control token. Only what
//! a chat template wrote itself may ([`Tokenizer::encode_rendered`]).

mod bytelevel;
mod checkpoint;
mod gguf;
mod huggingface;
mod merge;
mod pieces;
mod sentencepiece;
mod special;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use special::Shield;
pub(crate) use stream::TextStream;

use crate::error::{Result, invalid};
use bytelevel::ByteLevel;
use huggingface::Huggingface;
use pieces::Pieces;
use sentencepiece::SentencePiece;
use special::Matcher;
use std::collections::HashSet;

/// The tokenizer of a model that generates.
pub struct Tokenizer {
    model: Model,
    /// The bytes that each id stands for; none for a control token.
    pieces: Pieces,
    /// Control tokens: recognised only in what a chat template wrote.
    control: Matcher,
    /// Tokens that stand for literal text wherever it occurs, such as runs of line breaks in Gemma.
    literal: Matcher,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    ends: HashSet<u32>,
    /// Whether the vocabulary writes a word at the start of a text with a space before it, as SentencePiece does by default.
    leading_space: bool,
}

enum Model {
    SentencePiece(SentencePiece),
    ByteLevel(ByteLevel),
    Huggingface(Box<Huggingface>),
}

/// The longest text that is tokenized, some million words: no model reads as many, and each byte takes a hundred of memory.
const MAX_TEXT: usize = 16 << 20;

/// Returns the byte that a token such as `<0x0A>` stands for.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Names under which models of many makers end a turn or a text, for files whose metadata names only one end.
const END_NAMES: [&str; 14] = [
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|eot|>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
];

impl Tokenizer {
    /// Returns the number of ids.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Returns the ids of `text`, among them never a control token, whatever the text says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_run(text, true, &mut ids)?;
        Ok(ids)
    }

    /// Returns what a model reads for a raw prompt: the start token, where the model wants one, and the ids of `text`.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        self.encode_run(text, true, &mut ids)?;
        Ok(ids)
    }

    /// Returns a shield for texts that go through a chat template and then to [`Self::encode_rendered`].
    pub(crate) fn shield<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Shield<'_> {
        Shield::new(&self.control, texts)
    }

    /// Returns the ids of what a chat template made of shielded texts. Control tokens are those that the template wrote.
    pub(crate) fn encode_rendered(&self, rendered: &str, shield: &Shield<'_>) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut start = 0;
        for found in self.control.find(rendered) {
            self.encode_run(&shield.lift(&rendered[start..found.start]), start == 0, &mut ids)?;
            ids.push(found.id);
            start = found.end;
        }
        self.encode_run(&shield.lift(&rendered[start..]), start == 0, &mut ids)?;
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn encode_run(&self, run: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<()> {
        if run.len() > MAX_TEXT {
            return invalid!("the text has {} bytes, at most {MAX_TEXT} are tokenized at a time", run.len());
        }
        let mut start = 0;
        for found in self.literal.find(run) {
            self.encode_plain(&run[start..found.start], at_start && start == 0, ids)?;
            ids.push(found.id);
            start = found.end;
        }
        self.encode_plain(&run[start..], at_start && start == 0, ids)
    }

    fn encode_plain(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        match &self.model {
            Model::SentencePiece(model) => model.encode(text, ids),
            Model::ByteLevel(model) => model.encode(text, &self.pieces, ids)?,
            Model::Huggingface(model) => model.encode(text, at_start, &self.control, ids)?,
        }
        Ok(())
    }

    /// Returns the text of `ids`; control tokens have none, and bytes that are not UTF-8 become U+FFFD.
    ///
    /// Fails where an id is out of the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let vocab_size = self.vocab_size();
        if let Some(place) = ids.iter().position(|id| *id as usize >= vocab_size) {
            return invalid!("ids[{place}]={}: the vocabulary has {vocab_size} tokens, 0 the first", ids[place]);
        }
        let mut stream = TextStream::default();
        let mut text: String = ids.iter().map(|id| stream.push(self.bytes(*id))).collect();
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// Returns the bytes that `id` stands for; none for a control token or an id out of the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// Returns whether `id` ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Returns the text of the start token, for chat templates.
    pub(crate) fn bos_text(&self) -> &str {
        self.bos.and_then(|id| self.control.text(id)).unwrap_or_default()
    }

    /// Returns the text of the end token, for chat templates.
    pub(crate) fn eos_text(&self) -> &str {
        self.eos.and_then(|id| self.control.text(id)).unwrap_or_default()
    }

    /// Returns whether an answer's first word comes with a space that belongs to the vocabulary and not to the text.
    pub(crate) fn leading_space(&self) -> bool {
        self.leading_space
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("add_bos", &self.add_bos)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}
