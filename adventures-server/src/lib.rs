//! The chat service: cited answers over HTTP, for browsers and for OpenAI's clients.

pub mod answer;
pub mod colbert;
pub mod embedding;
pub mod http;
pub mod indexes;
pub mod library;
pub mod models;
pub mod options;
pub mod queue;
pub mod reranking;
pub mod service;
pub mod turns;
