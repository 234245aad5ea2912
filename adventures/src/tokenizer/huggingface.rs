//! Encoding by the `tokenizers` crate: its normalizer, pre-tokenizer and model, without its handling of added tokens.

use super::special::Matcher;
use crate::error::{Error, Result, cut, message};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::normalizer::Range;
use tokenizers::{
    Model as _, NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
};

pub(super) struct Huggingface {
    inner: tokenizers::Tokenizer,
    /// What stands for characters outside the vocabulary.
    unknown: Option<u32>,
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::Tokenizer(cut(e.to_string()))
}

impl Huggingface {
    pub(super) fn new(inner: tokenizers::Tokenizer, unknown: Option<u32>) -> Self {
        Self { inner, unknown }
    }

    /// Adds the ids of `text` to `ids`, none of them in `control`. `at_start` says that nothing stands before it.
    ///
    /// A step of the file that the tokenizers crate panics over is an error of that text.
    pub(super) fn encode(&self, text: &str, at_start: bool, control: &Matcher, ids: &mut Vec<u32>) -> Result<()> {
        let read = catch_unwind(AssertUnwindSafe(|| self.read(text, at_start, control)));
        ids.extend(read.unwrap_or_else(|panic| Err(failed(format!("reading a text: {}", message(&*panic)))))?);
        Ok(())
    }

    fn read(&self, text: &str, at_start: bool, control: &Matcher) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut normalized = if at_start {
            NormalizedString::from(text)
        } else {
            // `Metaspace` puts a space before the first word of a text only, which it knows by the offset.
            let shifted = NormalizedString::from(format!("-{text}"));
            shifted.slice(Range::Original(1..)).ok_or_else(|| failed("slicing a text"))?
        };
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(failed)?;
        }
        let mut words = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words).map_err(failed)?;
        }
        for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            self.tokenize(word, control, &mut ids)?;
        }
        Ok(ids)
    }

    /// A vocabulary may hold a control token that its merges can reach. Such a word is read in halves.
    fn tokenize(&self, word: &str, control: &Matcher, ids: &mut Vec<u32>) -> Result<()> {
        let tokens = self.inner.get_model().tokenize(word).map_err(failed)?;
        if !tokens.iter().any(|token| control.contains(token.id) && Some(token.id) != self.unknown) {
            ids.extend(tokens.iter().map(|token| token.id));
            return Ok(());
        }
        match word.char_indices().nth(word.chars().count() / 2) {
            Some((middle, _)) if middle > 0 => {
                self.tokenize(&word[..middle], control, ids)?;
                self.tokenize(&word[middle..], control, ids)
            }
            _ => Ok(()),
        }
    }
}
