//! A text's tokens, or those of a beginning that is long enough: megabytes are not tokenized to be cut to a few hundred tokens.

use crate::error::{Error, Result, cut, message};
use crate::split;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{Encoding, Tokenizer};

/// A token of real text has some 4 bytes, so a beginning of this many for each token holds enough of them.
const BYTES_PER_TOKEN: usize = 32;
/// How many tokens before a cut may differ from those of the whole text: a word of BERT has at most 100.
const MARGIN_TOKENS: usize = 128;

/// Returns the tokens of `text`, or its first `enough` tokens and some more, and whether there are others behind them.
///
/// No special tokens are added.
pub(crate) fn read(tokenizer: &Tokenizer, text: &str, enough: usize) -> Result<(Encoding, bool)> {
    // The tokenizers crate panics over some steps that a broken file may hold.
    let encode = |text| match catch_unwind(AssertUnwindSafe(|| tokenizer.encode_fast(text, false))) {
        Ok(read) => read.map_err(|e| Error::Tokenizer(cut(e.to_string()))),
        Err(panic) => Err(Error::Tokenizer(cut(format!("reading a text: {}", message(&*panic))))),
    };
    let certain = enough.saturating_add(MARGIN_TOKENS);
    let beginning = beginning(text, certain.saturating_mul(BYTES_PER_TOKEN));
    if beginning.len() < text.len() {
        let tokens = encode(beginning)?;
        if tokens.len() > certain {
            return Ok((tokens, true));
        }
    }
    Ok((encode(text)?, false))
}

/// Returns the first `bytes` bytes of `text` or a few less, up to white space where there is some near.
fn beginning(text: &str, bytes: usize) -> &str {
    let cut = split::head(text, bytes);
    if cut.len() == text.len() {
        return text;
    }
    let near = split::head(cut, cut.len().saturating_sub(1024)).len();
    cut[near..].rfind(char::is_whitespace).map_or(cut, |at| &cut[..near + at])
}
