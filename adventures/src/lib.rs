#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests state exact numbers"))]
//! Self-hosted retrieval-augmented chat without torch: embeddings and generation on plain CPUs.

mod chat;
pub mod checkpoint;
mod colbert;
mod device;
mod embedder;
mod error;
mod generator;
pub mod gguf;
mod index;
mod kernels;
pub mod models;
mod reading;
mod reranker;
mod sampling;
mod schema;
mod split;
mod template;
pub mod tokenizer;

pub use chat::{CitationFilter, Example, NOT_FOUND, Profile, Prompt, PromptRequest, Turn, leans};
pub use colbert::{ColBERT, ColBERTOptions, HeatMap, TokenVectors};
pub use device::{device, threads};
pub use embedder::{Embedder, EmbedderOptions, Embeddings, Kind, Pooling};
pub use error::{Error, Result};
pub use generator::{
    EngineLoad, Finish, GenerateOptions, Generation, GenerationStats, Generator, GeneratorOptions, Next, TokenLogprob,
};
pub use index::{Documents, Found, Index, IndexInfo, IndexOptions, Progress, Results, SearchOptions, Writer};
pub use kernels::panels::Precision;
pub use models::decoder::Quantize;
pub use reranker::{Activation, CrossEncoder, Reranker, RerankerKind, RerankerOptions, Scores};
pub use sampling::SamplingOptions;
pub use template::{Message, Role};
