//! Byte-level BPE: the alphabet of GPT-2 and the patterns that cut text into words.

use super::merge::merge;
use super::pieces::{Index, Pieces};
use crate::error::{Error, Result, cut, invalid, message, unsupported};
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::pattern::Pattern;
use tokenizers::utils::SysRegex;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// How a vocabulary cuts text into words before it merges bytes; each pattern cuts what the one before has left.
///
/// The names and patterns are those of llama.cpp's `tokenizer.ggml.pre` (`llama-vocab.cpp`).
pub(super) struct Words {
    patterns: &'static [&'static str],
    /// Whether a word that is a token as it stands is not taken apart.
    whole: bool,
    /// Whether texts begin with the start token, where the file does not say.
    pub(super) add_bos: bool,
}

impl Words {
    pub(super) fn named(name: &str) -> Result<Self> {
        let plain = |patterns| Self { patterns, whole: false, add_bos: false };
        Ok(match name {
            "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "gigachat" | "a.x-4.0" | "mellum"
            | "granite-docling" => plain(&[GPT2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
                plain(&[r"\p{N}", GPT2])
            }
            "falcon" => plain(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
                Self { patterns: &[LLAMA3], whole: true, add_bos: true }
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => plain(&[LLAMA3]),
            "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "hunyuan" | "megrez" => plain(&[QWEN2]),
            "qwen35" => plain(&[QWEN35]),
            "tekken" => Self { patterns: &[TEKKEN], whole: true, add_bos: true },
            "gpt-4o" | "llama4" => plain(&[GPT4O]),
            "deepseek-v3" => plain(&[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3_WORDS]),
            _ => return unsupported!("tokenizer.ggml.pre {name:?}: this way of cutting text into words is not known"),
        })
    }
}

/// A vocabulary of bytes and what their merges make, in the order of the file, best first.
pub(super) struct ByteLevel {
    cuts: Vec<SysRegex>,
    /// The token of each byte.
    bytes: Box<[Option<u32>; 256]>,
    /// The place in the order of what two tokens become, and what it is.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// The tokens by their bytes, where a word that is one is not taken apart.
    whole: Option<Index>,
}

impl ByteLevel {
    /// Returns the vocabulary of the `pieces` that text may become, all but `is_text` of them left out.
    pub(super) fn new(pieces: &Pieces, is_text: impl Fn(u32) -> bool, merges: &[&str], words: &Words) -> Result<Self> {
        let mut index = Index::with_capacity(pieces.len());
        for id in (0..pieces.len() as u32).filter(|id| is_text(*id)) {
            index.insert(pieces, id);
        }
        let alphabet = Alphabet::new();
        let mut joined: Vec<u8> = Vec::new();
        let mut ranks = HashMap::with_capacity(merges.len());
        for (rank, merge) in (0..).zip(merges) {
            // A piece may itself hold a space in no byte-level vocabulary, but may begin with one in a broken one.
            let pair = merge.split_once(' ').and_then(|(left, right)| {
                joined.clear();
                joined.extend(alphabet.bytes(left));
                let middle = joined.len();
                joined.extend(alphabet.bytes(right));
                let id = |bytes: &[u8]| index.find(pieces, bytes);
                Some((id(&joined[..middle])?, id(&joined[middle..])?, id(&joined)?))
            });
            let Some((left, right, both)) = pair else {
                return invalid!("tokenizer.ggml.merges[{rank}] {merge:?} does not join two tokens to a third");
            };
            ranks.insert((left, right), (rank, both));
        }
        let cut = |pattern: &&str| SysRegex::new(pattern).map_err(failed);
        let mut bytes = Box::new([None; 256]);
        for (byte, id) in (0..=255).zip(bytes.iter_mut()) {
            *id = index.find(pieces, &[byte]);
        }
        Ok(Self {
            cuts: words.patterns.iter().map(cut).collect::<Result<_>>()?,
            bytes,
            merges: ranks,
            whole: words.whole.then_some(index),
        })
    }

    /// Adds the ids of `text` to `ids`; `pieces` are those that it was made of. Bytes that are no token are left out.
    pub(super) fn encode(&self, text: &str, pieces: &Pieces, ids: &mut Vec<u32>) -> Result<()> {
        for word in self.words(text)? {
            let word = &text.as_bytes()[word];
            if let Some(id) = self.whole.as_ref().and_then(|index| index.find(pieces, word)) {
                ids.push(id);
                continue;
            }
            let bytes =
                word.iter().enumerate().filter_map(|(at, byte)| Some((at, 1, Some(self.bytes[*byte as usize]?))));
            let merged = merge(bytes, |left, right| {
                let (rank, id) = self.merges.get(&(left.id?, right.id?))?;
                Some((Reverse(*rank), *id))
            });
            ids.extend(merged.filter_map(|symbol| symbol.id));
        }
        Ok(())
    }

    /// Returns the words of `text`, none of them empty. A pattern that its library panics over is an error of that text.
    fn words(&self, text: &str) -> Result<Vec<Range<usize>>> {
        let mut words: Vec<Range<usize>> = std::iter::once(0..text.len()).collect();
        for cut in &self.cuts {
            let mut finer = Vec::with_capacity(words.len());
            for word in words {
                let found = catch_unwind(AssertUnwindSafe(|| cut.find_matches(&text[word.clone()])));
                let found = found.unwrap_or_else(|panic| Err(message(&*panic).into())).map_err(failed)?;
                finer.extend(found.into_iter().map(|((start, end), _)| word.start + start..word.start + end));
            }
            words = finer;
        }
        words.retain(|word| !word.is_empty());
        Ok(words)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn failed(e: impl ToString) -> Error {
    Error::Tokenizer(cut(e.to_string()))
}

/// GPT-2's alphabet, the other way: each of its characters stands for a byte.
pub(super) struct Alphabet([Option<u8>; Self::SIZE]);

impl Alphabet {
    /// The 68 bytes that are not printed as they are become the characters from 0x100 on.
    const SIZE: usize = 0x100 + 68;

    pub(super) fn new() -> Self {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut bytes = [None; Self::SIZE];
        let mut shifted = 0x100;
        for b in 0..=255 {
            if printable(b) {
                bytes[b as usize] = Some(b);
            } else {
                bytes[shifted] = Some(b);
                shifted += 1;
            }
        }
        Self(bytes)
    }

    /// Returns the bytes that a piece stands for; a character outside the alphabet stands for itself.
    pub(super) fn bytes(&self, piece: &str) -> impl Iterator<Item = u8> {
        piece.chars().flat_map(|c| {
            let (mut bytes, mut len) = ([0; 4], 1);
            match self.0.get(c as usize).copied().flatten() {
                Some(b) => bytes[0] = b,
                None => len = c.encode_utf8(&mut bytes).len(),
            }
            bytes.into_iter().take(len)
        })
    }
}
