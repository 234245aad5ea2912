//! What Python sees of adventures.

mod arrow;
mod boundary;
mod chat;
mod colbert;
mod convert;
mod embedder;
mod embeddings;
mod error;
mod generator;
mod index;
mod logprob;
mod option;
mod reranker;

use pyo3::prelude::*;

/// Rust core of `adventures`.
#[pymodule]
mod _adventures {
    #[pymodule_export]
    use crate::chat::{CitationFilter, Profile, Prompt, leans};
    #[pymodule_export]
    use crate::colbert::{ColBERT, HeatMap, TokenVectors};
    #[pymodule_export]
    use crate::embedder::{Embedder, Embeddings};
    #[pymodule_export]
    use crate::embeddings::EmbeddingStream;
    #[pymodule_export]
    use crate::error::{AdventuresError, BusyError, TruncationWarning};
    #[pymodule_export]
    use crate::generator::{Generation, GenerationStats, Generator};
    #[pymodule_export]
    use crate::index::{IndexWriter, MultiVectorIndex};
    #[pymodule_export]
    use crate::logprob::TokenLogprob;
    #[pymodule_export]
    use crate::reranker::{Reranker, Scores};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("NOT_FOUND", adventures::NOT_FOUND)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
