//! Byte-level BPE: the alphabet of GPT-2 and the patterns that cut text into words.

use crate::error::{Error, Result, unsupported};
use std::collections::HashMap;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

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

/// Returns the tokenizer of byte-level pieces and their merges, best first.
///
/// Every merge must join two pieces to a third: the builder of the `tokenizers` crate reads past its buffer's end otherwise
/// (<https://github.com/huggingface/tokenizers/issues/2094>).
pub(super) fn tokenizer(pieces: Vec<(String, u32)>, merges: &[&str], words: &Words) -> Result<Tokenizer> {
    let vocab: Vocab = pieces.into_iter().collect();
    let mut pairs: Merges = Vec::with_capacity(merges.len());
    for (i, merge) in merges.iter().enumerate() {
        // A piece may itself hold a space in no byte-level vocabulary, but may begin with one in a broken one.
        let pair = merge.split_once(' ').filter(|(left, right)| {
            vocab.contains_key(*left) && vocab.contains_key(*right) && vocab.contains_key(&format!("{left}{right}"))
        });
        let Some((left, right)) = pair else {
            return Err(Error::Invalid(format!(
                "tokenizer.ggml.merges[{i}] {merge:?} does not join two tokens to a third"
            )));
        };
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let failed = |e: tokenizers::Error| Error::Tokenizer(e.to_string());
    let model = BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(words.whole).build().map_err(failed)?;
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in words.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(tokenizer)
}

/// GPT-2's alphabet, the other way: each of its characters stands for a byte.
pub(super) struct Alphabet(HashMap<char, u8>);

impl Alphabet {
    pub(super) fn new() -> Self {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut shifted = 0x100..;
        let chars = (0..=255u8).map(|b| {
            let code = if printable(b) { u32::from(b) } else { shifted.next().unwrap_or(0) };
            (char::from_u32(code).unwrap_or_default(), b)
        });
        Self(chars.collect())
    }

    /// Returns the bytes that a piece stands for; a character outside the alphabet stands for itself.
    pub(super) fn bytes(&self, piece: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(piece.len());
        for c in piece.chars() {
            match self.0.get(&c) {
                Some(b) => bytes.push(*b),
                None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        bytes
    }
}
