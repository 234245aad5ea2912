//! One error for the whole crate.

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the caller can do about it.
///
/// Messages start in lower case and name the thing and the value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or a file that is not what it should be; the caller can mend it.
    #[error("{0}")]
    Invalid(String),
    /// A path, a model, a tensor or a table that is not there.
    #[error("{0}")]
    NotFound(String),
    /// An architecture, a data type, a device or a template outside what is supported.
    #[error("{0}")]
    Unsupported(String),
    /// No room now; the same call may go through later.
    #[error("{0}")]
    Busy(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The operating system refused to read or write.
    #[error("{context}: {source}")]
    Io {
        /// What was being read or written.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A tensor operation failed.
    #[error("model: {0}")]
    Model(#[from] candle_core::Error),
    /// A tokenizer could not be read or could not read a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl Error {
    /// An `Io` error that says what was being done.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { context: context.into(), source }
    }
}

/// What is shown of what a library says of a file: it may quote all of it.
const MAX_SAID: usize = 400;

/// Returns the beginning of `said`.
pub(crate) fn cut(said: String) -> String {
    match said.char_indices().nth(MAX_SAID) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said,
    }
}

/// Returns what a panic said.
pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// `Err(Error::Invalid(format!(…)))`.
macro_rules! invalid {
    ($($arg:tt)*) => { Err($crate::Error::Invalid(format!($($arg)*))) };
}
/// `Err(Error::Unsupported(format!(…)))`.
macro_rules! unsupported {
    ($($arg:tt)*) => { Err($crate::Error::Unsupported(format!($($arg)*))) };
}
pub(crate) use {invalid, unsupported};
