//! What OpenAI's clients send, and what they expect back.
//!
//! Fields that would change an answer and are not supported are refused by name; those that cannot are read and left alone.

use super::problem::Problem;
use adventures::{Finish, GenerateOptions, GenerationStats, Message, Role, SamplingOptions, TokenLogprob};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The most stop texts, and the longest in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 512;
const MAX_MESSAGES: usize = 1024;

/// A turn of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ChatMessage {
    /// `system` (or `developer`), `user` or `assistant`.
    role: String,
    /// A text, or a list of parts of type `text`.
    content: Content,
    /// Not used.
    #[allow(dead_code, reason = "read so that it is not refused")]
    name: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize, ToSchema)]
struct Part {
    r#type: String,
    text: Option<String>,
}

/// One text or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// What a streamed response holds beside its pieces.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Whether the tokens are counted in a last chunk.
    #[serde(default)]
    pub include_usage: bool,
    /// Not used.
    #[allow(dead_code, reason = "read so that it is not refused")]
    include_obfuscation: Option<bool>,
}

/// How an answer is generated.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct Sampling {
    /// How freely words are chosen; 0 (the default here) takes the most likely ones.
    #[schema(minimum = 0.0)]
    pub temperature: Option<f64>,
    /// Keeps the most likely tokens whose probabilities add up to this.
    pub top_p: Option<f64>,
    /// Keeps this many of the most likely tokens.
    pub top_k: Option<usize>,
    /// Keeps tokens at least this share as likely as the most likely one.
    pub min_p: Option<f64>,
    /// From -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// From -2 to 2.
    pub presence_penalty: Option<f64>,
    /// Token id → what is added to its logit, from -100 (never) to 100 (only).
    #[schema(value_type = Option<Object>)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Makes an answer with a temperature repeatable.
    #[schema(value_type = Option<u64>)]
    pub seed: Option<i64>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Option<Texts>,
    /// Only 1.
    pub n: Option<u64>,
}

impl Sampling {
    /// Checks them, and returns how to generate.
    pub(super) fn options(self, max_tokens: Option<u64>, most: usize) -> Result<GenerateOptions, Problem> {
        if let Some(n) = self.n.filter(|n| *n != 1) {
            return Err(Problem::invalid("n", format!("n must be 1, not {n}: one answer a request")));
        }
        let max_tokens = match max_tokens {
            Some(0) => return Err(Problem::invalid("max_tokens", "max_tokens must be 1 or more, not 0")),
            Some(n) => most.min(usize::try_from(n).unwrap_or(usize::MAX)),
            None => most,
        };
        let stop = self.stop.map(Texts::into_vec).unwrap_or_default();
        if stop.len() > MAX_STOPS || stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP) {
            let message = format!("stop must be at most {MAX_STOPS} texts of 1 to {MAX_STOP} bytes each");
            return Err(Problem::invalid("stop", message));
        }
        let mut logit_bias = BTreeMap::new();
        for (token, bias) in self.logit_bias.unwrap_or_default() {
            let Ok(id) = token.parse::<u32>() else {
                return Err(Problem::invalid("logit_bias", format!("logit_bias names the token {token:?}, not an id")));
            };
            if !(-100.0..=100.0).contains(&bias) {
                return Err(Problem::invalid("logit_bias", format!("logit_bias must be from -100 to 100, not {bias}")));
            }
            let bias = match bias {
                -100.0 => f64::NEG_INFINITY,
                100.0 => f64::INFINITY,
                bias => bias,
            };
            logit_bias.insert(id, bias);
        }
        let standard = SamplingOptions::default();
        let sampling = SamplingOptions {
            temperature: self.temperature.unwrap_or(standard.temperature),
            top_p: self.top_p.unwrap_or(standard.top_p),
            top_k: self.top_k.unwrap_or(standard.top_k),
            min_p: self.min_p.unwrap_or(standard.min_p),
            frequency_penalty: self.frequency_penalty.unwrap_or(standard.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(standard.presence_penalty),
            logit_bias,
            // OpenAI's seed has a sign; ours is the same bits.
            seed: self.seed.map(|seed| seed as u64),
            ..standard
        };
        Ok(GenerateOptions { max_tokens, sampling, stop, ..GenerateOptions::default() })
    }
}

/// Returns the messages in the model's terms.
pub(super) fn messages(given: Vec<ChatMessage>) -> Result<Vec<Message>, Problem> {
    if given.is_empty() || given.len() > MAX_MESSAGES {
        let message = format!("messages must be from 1 to {MAX_MESSAGES}, not {}", given.len());
        return Err(Problem::invalid("messages", message));
    }
    let convert = |(i, message): (usize, ChatMessage)| {
        let param = format!("messages[{i}]");
        let role = match message.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let shown: String = other.chars().take(40).collect();
                return Err(Problem::invalid(
                    &format!("{param}.role"),
                    format!("{param} has the role {shown:?}; there are system, user and assistant"),
                ));
            }
        };
        let content = match message.content {
            Content::Text(text) => text,
            Content::Parts(parts) => {
                let texts = parts.into_iter().map(|part| match (part.r#type.as_str(), part.text) {
                    ("text", Some(text)) => Ok(text),
                    _ => Err(Problem::invalid(&format!("{param}.content"), "only parts of type text are read")),
                });
                texts.collect::<Result<Vec<_>, _>>()?.join("\n")
            }
        };
        Ok(Message::new(role, content))
    };
    given.into_iter().enumerate().map(convert).collect()
}

/// The shape that an answer is to have.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    r#type: String,
    /// With `json_schema`: an object whose `schema` the answer fulfils.
    #[schema(value_type = Option<Object>)]
    json_schema: Option<Map<String, Value>>,
}

impl ResponseFormat {
    /// The schema, as JSON; `None` where the answer is text.
    pub(super) fn schema(self) -> Result<Option<String>, Problem> {
        match (self.r#type.as_str(), self.json_schema.and_then(|mut named| named.remove("schema"))) {
            ("text", _) => Ok(None),
            ("json_object", _) => Ok(Some(r#"{"type":"object"}"#.into())),
            ("json_schema", Some(schema)) => Ok(Some(schema.to_string())),
            ("json_schema", None) => {
                Err(Problem::invalid("response_format", "response_format.json_schema has no schema"))
            }
            _ => Err(Problem::invalid(
                "response_format",
                "response_format has a type that is none of text, json_object, json_schema",
            )),
        }
    }
}

/// How many tokens were read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

/// How the prompt was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct PromptDetails {
    /// How many of its tokens were not read again, as an earlier prompt began with them too.
    cached_tokens: usize,
}

impl Usage {
    /// Of an answer; of one that no model wrote, zeros.
    pub(super) fn of(stats: Option<&GenerationStats>) -> Self {
        let Some(stats) = stats else { return Self::default() };
        Self {
            prompt_tokens: stats.prompt_tokens,
            completion_tokens: stats.generated_tokens,
            total_tokens: stats.prompt_tokens + stats.generated_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: stats.cached_tokens },
        }
    }

    /// Of texts that were embedded.
    pub(super) fn read(tokens: usize) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens, ..Self::default() }
    }
}

/// Why an answer ended, in OpenAI's words.
pub(super) fn finish_reason(stats: Option<&GenerationStats>) -> &'static str {
    match stats.and_then(|stats| stats.finish) {
        Some(Finish::Length | Finish::Context) => "length",
        _ => "stop",
    }
}

/// The log probabilities of some tokens, as chat completions have them.
pub(super) fn chat_logprobs(tokens: &[TokenLogprob]) -> Value {
    let one = |token: &TokenLogprob| json!({"token": String::from_utf8_lossy(&token.bytes), "logprob": token.logprob, "bytes": token.bytes});
    let with_alternatives = |token: &TokenLogprob| {
        let mut entry = one(token);
        entry["top_logprobs"] = token.alternatives.iter().map(one).collect();
        entry
    };
    json!({"content": tokens.iter().map(with_alternatives).collect::<Vec<_>>(), "refusal": null})
}

/// The same as plain completions have them; `offset` is how many characters come before.
pub(super) fn completion_logprobs(tokens: &[TokenLogprob], mut offset: usize) -> Value {
    let text = |token: &TokenLogprob| String::from_utf8_lossy(&token.bytes).into_owned();
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(offset);
        offset += text(token).chars().count();
    }
    let top = |token: &TokenLogprob| {
        let entries = token.alternatives.iter().map(|other| (text(other), json!(other.logprob)));
        entries.collect::<Map<String, Value>>()
    };
    json!({
        "tokens": tokens.iter().map(text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
