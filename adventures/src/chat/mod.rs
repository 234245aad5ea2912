//! A cited answer as text: from a question and passages to messages, and from what a model writes to what may be read.

mod characters;
mod citations;
mod profile;
mod prompt;
mod topic;

pub use citations::CitationFilter;
pub use profile::{Example, Profile};
pub use prompt::{Prompt, PromptRequest, Turn};
pub use topic::leans;

/// The answer to a question that nothing in the library is about.
pub const NOT_FOUND: &str = "The library holds nothing on that.";
