//! The tokenizer inside a GGUF file.

use super::bytelevel::{Alphabet, ByteLevel, Words};
use super::pieces::Pieces;
use super::sentencepiece::{Parts, SentencePiece};
use super::special::{Matcher, Token};
use super::{END_NAMES, Model, Tokenizer};
use crate::error::{Error, Result, cut, invalid, unsupported};
use crate::gguf::{Array, Gguf, Metadata};

/// What a token is for: `enum llama_token_type`.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Normal,
    Unknown,
    Control,
    Literal,
    Unused,
    Byte,
}

impl Tokenizer {
    /// Returns the tokenizer of `tokenizer.ggml.*`: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`).
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::read_gguf(gguf).map_err(|e| match e {
            // Errors of the metadata name the file already.
            Error::Unsupported(m) if !m.starts_with(gguf.name()) => {
                Error::Unsupported(format!("{}: {}", gguf.name(), cut(m)))
            }
            Error::Invalid(m) if !m.starts_with(gguf.name()) => Error::Invalid(format!("{}: {}", gguf.name(), cut(m))),
            other => other,
        })
    }

    fn read_gguf(gguf: &Gguf) -> Result<Self> {
        let m = &gguf.metadata;
        let texts: Vec<&str> = m.list("tokenizer.ggml.tokens")?;
        if texts.is_empty() {
            return invalid!("tokenizer.ggml.tokens is empty");
        }
        let uses = uses(m, &texts)?;
        let id = |key: &str| -> Result<Option<u32>> {
            match m.find::<u32>(key)? {
                Some(u32::MAX) | None => Ok(None),
                Some(id) if (id as usize) < texts.len() => Ok(Some(id)),
                Some(id) => invalid!("{key} is {id}, the vocabulary has {} tokens", texts.len()),
            }
        };
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let eos = id("tokenizer.ggml.eos_token_id")?;
        let kind = m.str("tokenizer.ggml.model")?;
        let words = match kind {
            "gpt2" => Some(Words::named(m.find("tokenizer.ggml.pre")?.unwrap_or("default"))?),
            "llama" => None,
            _ => return unsupported!("tokenizer.ggml.model {kind:?}; \"llama\" and \"gpt2\" are supported"),
        };
        let add_space = words.is_none() && m.find("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let add_bos = m.find("tokenizer.ggml.add_bos_token")?.unwrap_or(words.as_ref().is_none_or(|w| w.add_bos));

        let mut ends = Vec::from_iter(eos);
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(id(key)?);
        }
        for name in END_NAMES {
            let named = texts.iter().zip(&uses).position(|(text, use_)| *use_ != Use::Normal && *text == name);
            ends.extend(named.map(|id| id as u32));
        }
        let mut controls: Vec<bool> = uses.iter().map(|use_| matches!(use_, Use::Control | Use::Unknown)).collect();
        // The ids that metadata calls start and end are control tokens even where their type says otherwise.
        for id in ends.iter().copied().chain(bos) {
            controls[id as usize] = true;
        }
        let control = |id: usize| controls[id];
        let tokens = |wanted: &dyn Fn(usize) -> bool| {
            let ids = (0..texts.len()).filter(|id| wanted(*id) && texts[*id].chars().nth(1).is_some());
            Matcher::new(
                ids.map(|id| Token { id: id as u32, text: texts[id].to_owned(), ..Token::default() }).collect(),
            )
        };
        let literal = Matcher::new(
            (0..texts.len())
                .filter(|id| uses[*id] == Use::Literal && !control(*id))
                .map(|id| Token { id: id as u32, text: texts[id].to_owned(), ..Token::default() })
                .collect(),
        )?;
        let (pieces, model) = if let Some(words) = words {
            let merges: Vec<&str> = m.list("tokenizer.ggml.merges")?;
            let pieces = byte_level_pieces(&texts, &uses, &control);
            let is_text = |id: u32| uses[id as usize] == Use::Normal && !control(id as usize);
            let model = ByteLevel::new(&pieces, is_text, &merges, &words)?;
            (pieces, Model::ByteLevel(model))
        } else {
            let unknown = id("tokenizer.ggml.unknown_token_id")?;
            let model = sentencepiece(m, &texts, &uses, &control, unknown, add_space)?;
            (sentencepiece_pieces(&texts, &uses, &control)?, Model::SentencePiece(model))
        };
        Ok(Self {
            model,
            pieces,
            control: tokens(&control)?,
            literal,
            bos,
            eos,
            add_bos,
            ends: ends.iter().copied().collect(),
            leading_space: add_space,
        })
    }
}

fn uses(m: &Metadata, texts: &[&str]) -> Result<Vec<Use>> {
    let Some(types) = m.find::<Array<'_>>("tokenizer.ggml.token_type")? else {
        return Ok(vec![Use::Normal; texts.len()]);
    };
    if types.len() != texts.len() {
        return invalid!("tokenizer.ggml.token_type has {} entries, there are {} tokens", types.len(), texts.len());
    }
    let types: Vec<u32> = m.list("tokenizer.ggml.token_type")?;
    let uses = types.iter().zip(texts).map(|(number, text)| match number {
        2 => Use::Unknown,
        3 => Use::Control,
        // Converters have marked the turns of some models as literal text, which would let a document end its own turn.
        4 if text.starts_with("<|") && text.ends_with("|>") => Use::Control,
        4 if matches!(*text, "<start_of_turn>" | "<end_of_turn>" | "[INST]" | "[/INST]") => Use::Control,
        4 => Use::Literal,
        5 => Use::Unused,
        6 => Use::Byte,
        _ => Use::Normal,
    });
    Ok(uses.collect())
}

/// Returns no pieces yet, with room for `texts`.
fn room(texts: &[&str]) -> Pieces {
    Pieces::with_capacity(texts.len(), texts.iter().map(|text| text.len()).sum())
}

fn byte_level_pieces(texts: &[&str], uses: &[Use], control: &dyn Fn(usize) -> bool) -> Pieces {
    let alphabet = Alphabet::new();
    let mut pieces = room(texts);
    for (id, text) in texts.iter().enumerate() {
        match uses[id] {
            _ if control(id) => pieces.push(b""),
            Use::Literal => pieces.push(text.as_bytes()),
            _ => pieces.extend(alphabet.bytes(text)),
        }
    }
    pieces
}

fn sentencepiece_pieces(texts: &[&str], uses: &[Use], control: &dyn Fn(usize) -> bool) -> Result<Pieces> {
    let mut pieces = room(texts);
    for (id, text) in texts.iter().enumerate() {
        match uses[id] {
            _ if control(id) => pieces.push(b""),
            Use::Literal => pieces.push(text.as_bytes()),
            Use::Byte => pieces.push(&[byte(text)?]),
            _ if !text.contains('▁') => pieces.push(text.as_bytes()),
            _ => pieces.push(text.replace('▁', " ").as_bytes()),
        }
    }
    Ok(pieces)
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte(text: &str) -> Result<u8> {
    super::byte_token(text).ok_or_else(|| Error::Invalid(format!("the byte token {text:?} is not of the form <0x0A>")))
}

fn sentencepiece(
    m: &Metadata,
    texts: &[&str],
    uses: &[Use],
    control: &dyn Fn(usize) -> bool,
    unknown: Option<u32>,
    add_space: bool,
) -> Result<SentencePiece> {
    let scores: Vec<f32> = m.list("tokenizer.ggml.scores")?;
    if scores.len() != texts.len() {
        return invalid!("tokenizer.ggml.scores has {} entries, there are {} tokens", scores.len(), texts.len());
    }
    let mut byte_ids = Box::new([0; 256]);
    let mut bytes_found = 0;
    let mut pieces = room(texts);
    for (id, text) in texts.iter().enumerate() {
        match uses[id] {
            Use::Normal | Use::Literal if !control(id) => pieces.push(text.as_bytes()),
            use_ => {
                if use_ == Use::Byte {
                    byte_ids[byte(text)? as usize] = id as u32;
                    bytes_found += 1;
                }
                pieces.push(b"");
            }
        }
    }
    let byte_ids = (bytes_found >= 256).then_some(byte_ids);
    Ok(SentencePiece::new(Parts { pieces, scores, byte_ids, unknown, add_space }))
}
