//! The service over HTTP/1.1.

mod answering;
mod chat;
mod completions;
mod connection;
mod embeddings;
pub mod endpoint;
mod guard;
mod indexes;
mod keys;
mod metrics;
mod openai;
mod openapi;
mod page;
mod probe;
mod problem;
mod rerank;
mod run;
mod search;
mod seed;
mod sse;
mod status;

pub use openapi::document;
pub use probe::probe;
pub use run::serve;

use crate::answer::Retrieval;
use crate::library::{MAX_EXPAND, RetrievalKind};
use crate::options::{MAX_K, Options};
use crate::queue::{Full, Place, Queue};
use crate::service::{Service, Writes};
use actix_web::http::StatusCode;
use keys::{Client, Keys};
use metrics::Metrics;
use problem::Problem;
use serde_json::{Map, Value};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::watch;

/// The longest body of a request, in bytes.
const MAX_BODY: usize = 4 << 20;
/// A token has this many bytes at most where text is text; what is longer is refused before it is read.
const BYTES_PER_TOKEN: usize = 32;

/// How the service is doing, from start to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Phase {
    /// Answers are begun.
    Serving,
    /// No more are begun; those that run may end.
    Draining,
    /// What still runs is ended.
    Stopped,
}

/// What all requests share.
struct App {
    options: Options,
    service: OnceLock<Arc<Service>>,
    queue: Queue,
    keys: Keys,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    started: Instant,
}

impl App {
    fn new(options: Options) -> Self {
        Self {
            queue: Queue::new(options.slots, options.queue, options.keys.len()),
            keys: Keys::new(&options.keys),
            metrics: Metrics::new(),
            phase: watch::Sender::new(Phase::Serving),
            service: OnceLock::new(),
            started: Instant::now(),
            options,
        }
    }

    /// Models and library, once they are there.
    fn service(&self) -> Result<&Arc<Service>, Problem> {
        if *self.phase.borrow() > Phase::Serving {
            return Err(Problem::stopping());
        }
        self.service.get().ok_or_else(Problem::not_ready)
    }

    /// The model that writes, where `model` names it.
    fn writes(&self, model: Option<&str>) -> Result<&Writes, Problem> {
        let writes = self.service()?.writes()?;
        match model {
            Some(name) if !names(name, &writes.name) => Err(no_model(name, &writes.name)),
            _ => Ok(writes),
        }
    }

    /// A place in the queue.
    fn enter(&self, client: &Client) -> Result<Place, Problem> {
        self.queue.enter(client.name()).map_err(|Full { retry_after }| {
            self.metrics.refused();
            Problem::busy("all slots are taken and the queue is full", retry_after)
        })
    }

    /// How to search, where a request leaves something open.
    fn retrieval(&self, asked: SearchSettings) -> Result<Retrieval, Problem> {
        let k = asked.k.unwrap_or(self.options.k);
        if !(1..=MAX_K).contains(&k) {
            return Err(Problem::invalid("k", format!("k must be from 1 to {MAX_K}, not {k}")));
        }
        let min_similarity = match asked.min_similarity {
            Some(x) if !(-1.0..=1.0).contains(&x) => {
                return Err(Problem::invalid(
                    "min_similarity",
                    format!("min_similarity must be from -1 to 1, not {x}"),
                ));
            }
            Some(x) => x,
            None => self.service()?.min_similarity,
        };
        let expand = asked.expand.unwrap_or(self.options.expand);
        if expand > MAX_EXPAND {
            return Err(Problem::invalid("expand", format!("expand must be from 0 to {MAX_EXPAND}, not {expand}")));
        }
        let kind = asked.retrieval.unwrap_or(self.options.retrieval);
        let hybrid = asked.hybrid.unwrap_or(self.options.hybrid);
        let rerank = match asked.rerank {
            Some(true) if self.service()?.reranker.is_none() => {
                return Err(Problem::invalid("rerank", "this service has no reranker"));
            }
            asked => asked.unwrap_or(true),
        };
        let filter = asked.filter.unwrap_or_default();
        Ok(Retrieval { k, kind, hybrid, rerank, expand, filter, min_similarity })
    }
}

/// How to search, as far as a request says.
#[derive(Debug, Default)]
struct SearchSettings {
    k: Option<usize>,
    retrieval: Option<RetrievalKind>,
    hybrid: Option<bool>,
    rerank: Option<bool>,
    expand: Option<usize>,
    filter: Option<Map<String, Value>>,
    min_similarity: Option<f32>,
}

/// Whether a client means the model by what it sent.
fn names(sent: &str, model: &str) -> bool {
    sent == model || sent == "default"
}

fn no_model(sent: &str, known: &str) -> Problem {
    let shown: String = sent.chars().take(100).collect();
    Problem::new(
        StatusCode::NOT_FOUND,
        "model_not_found",
        format!("no model {shown:?} is served here; there is {known:?}"),
    )
}

/// Refuses a text that is longer than any model could read.
fn check_length(param: &str, length: usize, tokens: usize) -> Result<(), Problem> {
    let most = tokens.saturating_mul(BYTES_PER_TOKEN);
    if length > most {
        let message =
            format!("{param} has {length} bytes; the model reads {tokens} tokens, which are {most} bytes at most");
        return Err(Problem::invalid(param, message));
    }
    Ok(())
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
