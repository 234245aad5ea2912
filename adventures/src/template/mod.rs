//! Chat templates: the Jinja that a model's file carries, rendered under limits.
//!
//! The dialect is that of `transformers.apply_chat_template`: trimmed blocks, loop controls, Python's methods of strings and dicts,
//! `raise_exception`, `strftime_now` and `tojson`. A template is part of a file that may be hostile: its steps, its depth, its
//! values (see [`growth`] and [`limits`]) and its output are bounded, and it can load nothing.

mod growth;
mod limits;
mod python;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result, cut, invalid};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        })
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "system" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            _ => invalid!("role {name:?}: expected \"system\", \"user\" or \"assistant\""),
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Returns a message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// The longest template that is read; the longest real ones have 20 KB.
const MAX_SOURCE: usize = 1 << 20;
/// What a template may write beyond what it was given.
const MAX_OUTPUT: usize = 1 << 20;
const BASE_FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 20_000;

/// A chat template, compiled.
pub(crate) struct Template {
    environment: Environment<'static>,
    source: String,
}

/// What a template is given besides the messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens<'a> {
    /// The text of the start token; empty where there is none.
    pub(crate) bos: &'a str,
    /// The text of the end token.
    pub(crate) eos: &'a str,
}

impl Template {
    /// Compiles a template.
    pub(crate) fn new(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return invalid!("the chat template has {} bytes, at most {MAX_SOURCE} are allowed", source.len());
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.expect("two flags; this is a bug");
        environment.set_syntax(syntax.clone());
        environment.set_recursion_limit(64);
        python::install(&mut environment);
        limits::install(&mut environment, MAX_OUTPUT);
        let unreadable =
            |e: minijinja::Error| Error::Invalid(format!("the chat template cannot be read: {}", describe(&e)));
        // It is never compiled as it is: the engine computes what is constant, such as `'a' * 99999999`, when it compiles.
        let source = growth::wrap(source, syntax).map_err(unreadable)?;
        environment.template_from_str(&source).map_err(unreadable)?;
        Ok(Self { environment, source })
    }

    /// Returns the conversation as the model reads it, up to where it answers.
    ///
    /// A template that refuses a system message, or leaves it out, gets its text at the start of the first user message.
    pub(crate) fn render(&self, messages: &[Message], tokens: Tokens<'_>) -> Result<String> {
        let rendered = self.render_as_is(messages, tokens);
        let [system, rest @ ..] = messages else { return rendered };
        let said = |text: &String| text.contains(system.content.trim());
        if system.role != Role::System || rendered.as_ref().is_ok_and(said) {
            return rendered;
        }
        let Some(first) = rest.iter().position(|message| message.role == Role::User) else { return rendered };
        let mut folded = rest.to_vec();
        folded[first].content = format!("{}\n\n{}", system.content, folded[first].content);
        self.render_as_is(&folded, tokens)
    }

    fn render_as_is(&self, messages: &[Message], tokens: Tokens<'_>) -> Result<String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(BASE_FUEL + FUEL_PER_MESSAGE * messages.len() as u64));
        let given: usize = messages.iter().map(|message| message.content.len()).sum();
        let limit = MAX_OUTPUT + 2 * given;
        limits::install(&mut environment, limit);
        let turns: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.to_string(), content => message.content.as_str() })
            .collect();
        let context = context! {
            messages => turns,
            add_generation_prompt => true,
            bos_token => tokens.bos,
            eos_token => tokens.eos,
            tools => (),
            documents => (),
        };
        let mut output = Limited { bytes: Vec::new(), limit, over: false };
        let result = environment
            .template_from_str(&self.source)
            .and_then(|template| template.render_captured_to(context, &mut output).map(|_| ()));
        match result {
            Ok(()) => {
                String::from_utf8(output.bytes).map_err(|_| Error::Invalid("the chat template wrote no UTF-8".into()))
            }
            Err(_) if output.over => {
                invalid!("the chat template writes more than {} bytes for {given} bytes of messages", output.limit)
            }
            Err(e) if e.kind() == ErrorKind::OutOfFuel => {
                invalid!("the chat template does not come to an end: stopped after {BASE_FUEL} steps")
            }
            Err(e) => invalid!("the chat template refuses these messages: {}", describe(&e)),
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What the template itself said, where it raised; else the engine's message with its line.
fn describe(e: &minijinja::Error) -> String {
    let said = match e.detail() {
        Some(detail) if e.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        _ => e.to_string(),
    };
    cut(said)
}

/// Collects output up to a limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
    over: bool,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.over = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
