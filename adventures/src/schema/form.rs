//! What an answer may be asked to keep to.

use super::MAX_PATTERNS;
use crate::error::{Result, invalid};
use llguidance::api::TopLevelGrammar;

/// What an answer keeps to.
#[derive(Debug)]
pub(crate) enum Form {
    /// The JSON text of a JSON schema.
    Schema(String),
    /// A regular expression that the whole answer matches.
    Pattern(String),
    /// Texts one of which is the answer.
    Choices(Vec<String>),
}

impl Form {
    /// Returns the option that asks for it, as errors name it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Schema(_) => "schema",
            Self::Pattern(_) => "pattern",
            Self::Choices(_) => "choices",
        }
    }

    pub(super) fn grammar(&self) -> Result<TopLevelGrammar> {
        match self {
            Self::Schema(schema) => super::grammar(schema),
            Self::Pattern(pattern) if pattern.is_empty() => invalid!("pattern: it is empty"),
            Self::Pattern(pattern) if pattern.len() > MAX_PATTERNS => {
                invalid!("pattern: it has {} bytes, at most {MAX_PATTERNS} are read", pattern.len())
            }
            // llguidance leaves it out.
            Self::Pattern(pattern) if (pattern.len() - pattern.trim_end_matches('\\').len()) % 2 == 1 => {
                invalid!("pattern: it ends with a \\ that nothing follows")
            }
            Self::Pattern(pattern) => Ok(TopLevelGrammar::from_regex(pattern)),
            Self::Choices(choices) if choices.is_empty() => invalid!("choices: there is none"),
            Self::Choices(choices) => {
                if let Some(i) = choices.iter().position(String::is_empty) {
                    return invalid!("choices[{i}]: an empty text is no answer");
                }
                let bytes: usize = choices.iter().map(String::len).sum();
                if bytes > MAX_PATTERNS {
                    return invalid!("choices: they have {bytes} bytes, at most {MAX_PATTERNS} are read");
                }
                let quoted: Vec<String> = choices.iter().map(|choice| quote(choice)).collect();
                Ok(TopLevelGrammar::from_regex(&quoted.join("|")))
            }
        }
    }
}

/// Returns the pattern of `text` and nothing else.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        // Not all punctuation: `\<` is the start of a word.
        if r"\.+*?()|[]{}^$".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}
