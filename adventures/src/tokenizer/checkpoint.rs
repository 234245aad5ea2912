//! The tokenizer of a model's directory: `tokenizer.json` and what its neighbours say about special tokens.

use super::bytelevel::Alphabet;
use super::huggingface::Huggingface;
use super::pieces::Pieces;
use super::special::{Matcher, Token};
use super::{END_NAMES, Model, Tokenizer, byte_token};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, invalid, unsupported};
use serde_json::Value;

impl Tokenizer {
    /// Returns the tokenizer of `tokenizer.json`; start and end tokens come from `generation_config.json`, `config.json` and
    /// `tokenizer_config.json`.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let inner = checkpoint.tokenizer()?;
        let empty = Value::Null;
        let settings = checkpoint.json("tokenizer_config.json")?.unwrap_or(Value::Null);
        let generation = checkpoint.json("generation_config.json")?.unwrap_or(Value::Null);
        let configs = [&generation, checkpoint.config(), checkpoint.config().get("text_config").unwrap_or(&empty)];
        Self::from_json(inner, &settings, &configs).map_err(|e| match e {
            Error::Unsupported(m) => Error::Unsupported(format!("{}: {m}", checkpoint.dir().display())),
            Error::Invalid(m) => Error::Invalid(format!("{}: {m}", checkpoint.dir().display())),
            other => other,
        })
    }

    /// Returns the tokenizer `inner`; `settings` is `tokenizer_config.json`, `configs` may name start and end ids.
    pub(crate) fn from_json(inner: tokenizers::Tokenizer, settings: &Value, configs: &[&Value]) -> Result<Self> {
        let style = Style::of(&inner)?;
        let vocab = inner.get_vocab(true);
        let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
        if size == 0 || size > 4_000_000 {
            return invalid!("tokenizer.json: the largest id makes a vocabulary of {size} tokens");
        }
        let mut added: Vec<_> = inner.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);

        let named = |key: &str| -> Option<u32> {
            let setting = settings.get(key)?;
            let text = setting.as_str().or_else(|| setting.get("content")?.as_str())?;
            vocab.get(text).copied()
        };
        let listed = |key: &str| -> Vec<u32> {
            let found = configs.iter().filter_map(|config| config.get(key)).find(|value| !value.is_null());
            let ids =
                found.map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()])).unwrap_or_default();
            ids.iter().filter_map(Value::as_u64).filter(|id| *id < size as u64).map(|id| id as u32).collect()
        };
        let bos = named("bos_token").or_else(|| listed("bos_token_id").first().copied());
        let eos = named("eos_token").or_else(|| listed("eos_token_id").first().copied());
        let mut ends: Vec<u32> = listed("eos_token_id");
        ends.extend(eos);
        let is_special = |id: u32| added.iter().any(|(other, token)| *other == id && token.special);
        ends.extend(END_NAMES.iter().filter_map(|name| vocab.get(*name).copied()).filter(|id| is_special(*id)));

        let (mut control, mut literal) = (Vec::new(), Vec::new());
        for (id, token) in &added {
            let many = token.content.chars().nth(1).is_some();
            let text = token.content.clone();
            let token = Token { id: *id, text, trim_left: token.lstrip, trim_right: token.rstrip };
            if is_special(*id) || ends.contains(id) || Some(*id) == bos {
                control.extend(Some(token).filter(|_| many));
            } else {
                literal.push(token);
            }
        }
        let control = Matcher::new(control)?;

        let mut by_id: Vec<Option<&str>> = vec![None; size];
        for (text, id) in &vocab {
            by_id[*id as usize] = Some(text);
        }
        let alphabet = Alphabet::new();
        let mut pieces = Pieces::default();
        for (id, text) in by_id.iter().enumerate() {
            let id = id as u32;
            let added = added.binary_search_by_key(&id, |(id, _)| *id).is_ok();
            match text {
                None => pieces.push(b""),
                Some(_) if control.contains(id) => pieces.push(b""),
                Some(text) if added => pieces.push(text.as_bytes()),
                Some(text) => pieces.push(&style.bytes(text, &alphabet)),
            }
        }
        let unknown = serde_json::to_value(inner.get_model()).ok();
        let unknown = unknown.and_then(|model| vocab.get(model.get("unk_token")?.as_str()?).copied());
        let empty = inner.encode("", true).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let add_bos = bos.is_some() && empty.get_ids().first().copied() == bos;
        Ok(Self {
            pieces,
            control,
            literal: Matcher::new(literal)?,
            bos,
            eos,
            add_bos,
            ends: ends.into_iter().collect(),
            leading_space: style.strips,
            model: Model::Huggingface(Box::new(Huggingface::new(inner, unknown))),
        })
    }
}

/// How the decoder of a `tokenizer.json` writes bytes.
struct Style {
    /// In GPT-2's alphabet, else with `▁` for a space.
    byte_level: bool,
    /// `<0x0A>` is a byte.
    byte_tokens: bool,
    /// The decoder takes one space off the start of a text.
    strips: bool,
}

impl Style {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let steps = match decoder.get("decoders").and_then(Value::as_array) {
            Some(steps) => steps.clone(),
            None => vec![decoder],
        };
        let mut style = Self { byte_level: false, byte_tokens: false, strips: false };
        for step in &steps {
            match step.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => style.byte_level = true,
                Some("ByteFallback") => style.byte_tokens = true,
                Some("Metaspace") => style.strips = step.get("prepend_scheme").and_then(Value::as_str) != Some("never"),
                Some("Strip") => style.strips = true,
                Some("Replace" | "Fuse") => {}
                other => {
                    return unsupported!("tokenizer.json: the decoder {:?} is not supported", other.unwrap_or("null"));
                }
            }
        }
        Ok(style)
    }

    fn bytes(&self, piece: &str, alphabet: &Alphabet) -> Vec<u8> {
        if self.byte_level {
            return alphabet.bytes(piece).collect();
        }
        match byte_token(piece) {
            Some(byte) if self.byte_tokens => vec![byte],
            _ => piece.replace('▁', " ").into_bytes(),
        }
    }
}
