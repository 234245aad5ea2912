//! Texts to the ids that a ColBERT encoder reads: marks, masks, cuts, and what becomes a vector.

use super::settings::Settings;
use crate::error::{Error, Result, invalid};
use crate::reading;
use std::path::Path;
use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

/// How queries are filled up, by BERT's and by RoBERTa's vocabulary.
const MASKS: [&str; 2] = ["[MASK]", "<mask>"];

/// One text as the encoder reads it.
pub(super) struct Tokens {
    pub(super) ids: Vec<u32>,
    /// How many are attended to, the first ones.
    pub(super) attended: usize,
    /// Which have a vector; `None` where all have.
    pub(super) kept: Option<Vec<usize>>,
    pub(super) truncated: bool,
}

/// Reads queries and documents as the checkpoint was trained to.
pub(super) struct Reader {
    tokenizer: Tokenizer,
    query_mark: u32,
    doc_mark: u32,
    /// What queries are filled up with; `None` where they are not.
    mask: Option<u32>,
    attends: bool,
    /// Sorted.
    skipped: Vec<u32>,
    lower_case: bool,
}

impl Reader {
    pub(super) fn new(tokenizer: Tokenizer, settings: &Settings, root: &Path) -> Result<Self> {
        let id = |names: &[String], what: &str| {
            let found = names.iter().find_map(|name| tokenizer.token_to_id(name));
            found.ok_or_else(|| Error::Invalid(format!("{}: the tokenizer has no {what} {names:?}", root.display())))
        };
        let masks = MASKS.map(str::to_owned);
        let query_mark = id(&settings.query_marks, "mark of a query")?;
        let doc_mark = id(&settings.doc_marks, "mark of a document")?;
        let mask = settings.expands.then(|| id(&masks, "token that queries are filled up with")).transpose()?;
        // A word that the vocabulary lacks would stand for all that it lacks.
        let mut skipped: Vec<u32> = settings.skiplist.iter().filter_map(|word| tokenizer.token_to_id(word)).collect();
        skipped.sort_unstable();
        let (attends, lower_case) = (settings.attends, settings.lower_case);
        Ok(Self { tokenizer, query_mark, doc_mark, mask, attends, skipped, lower_case })
    }

    /// Returns the least that `maxlen` can be: the mark, the special tokens, and one of the text.
    pub(super) fn least(&self) -> usize {
        2 + self.special()
    }

    /// Reads a query: `maxlen` tokens where it is filled up, at most as many elsewhere.
    pub(super) fn query(&self, text: &str, maxlen: usize) -> Result<Tokens> {
        let (mut ids, truncated) = self.read(text, self.query_mark, maxlen)?;
        let mut attended = ids.len();
        if let Some(mask) = self.mask {
            ids.resize(maxlen, mask);
            if self.attends {
                attended = ids.len();
            }
        }
        Ok(Tokens { ids, attended, kept: None, truncated })
    }

    /// Reads a document; punctuation is read and has no vector.
    pub(super) fn document(&self, text: &str, maxlen: usize) -> Result<Tokens> {
        let (ids, truncated) = self.read(text, self.doc_mark, maxlen)?;
        let kept: Vec<usize> = (0..ids.len()).filter(|i| self.skipped.binary_search(&ids[*i]).is_err()).collect();
        Ok(Tokens { attended: ids.len(), kept: Some(kept), ids, truncated })
    }

    /// Returns the tokens that have a vector, as the vocabulary has them.
    pub(super) fn names(&self, tokens: &Tokens) -> Vec<String> {
        let name = |id: u32| self.tokenizer.id_to_token(id).unwrap_or_else(|| format!("[{id}]"));
        match &tokens.kept {
            Some(kept) => kept.iter().map(|&i| name(tokens.ids[i])).collect(),
            None => tokens.ids.iter().map(|&id| name(id)).collect(),
        }
    }

    /// Returns how many tokens a document of `maxlen` tokens has for its text.
    pub(super) fn room(&self, maxlen: usize) -> usize {
        maxlen - 1 - self.special()
    }

    /// Returns how many tokens a piece of a text has, or, where these are more than `enough`, some number above that.
    pub(super) fn size(&self, piece: &str, enough: usize) -> Result<usize> {
        let lower = if self.lower_case { piece.to_lowercase() } else { String::new() };
        let piece = if self.lower_case { &lower } else { piece };
        let (encoding, more) = reading::read(&self.tokenizer, piece.trim(), enough)?;
        Ok(encoding.len() + usize::from(more))
    }

    fn special(&self) -> usize {
        self.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false))
    }

    /// Tokenizes, cuts and marks: the mark comes behind the first token, as an id, for its text would be other tokens.
    fn read(&self, text: &str, mark: u32, maxlen: usize) -> Result<(Vec<u32>, bool)> {
        let room = self.room(maxlen);
        let mut text = text.trim();
        let lower;
        if self.lower_case {
            lower = text.to_lowercase();
            text = &lower;
        }
        let (mut encoding, more) = reading::read(&self.tokenizer, text, room)?;
        let truncated = more || encoding.len() > room;
        encoding.truncate(room, 0, TruncationDirection::Right);
        let encoding =
            self.tokenizer.post_process(encoding, None, true).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        if ids.is_empty() {
            return invalid!("a text has no tokens, and this tokenizer adds none");
        }
        ids.insert(1, mark);
        Ok((ids, truncated))
    }
}
