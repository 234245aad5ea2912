//! Counts and times, as Prometheus reads them.

use super::App;
use adventures::GenerationStats;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
    status: u32,
}

/// What is counted.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Route, Counter>,
    seconds: Histogram,
    refused: Counter,
    first_token: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    drafted_tokens: Counter,
    accepted_tokens: Counter,
    embedded_texts: Gauge,
    running: Gauge,
    waiting: Gauge,
    reading: Gauge,
    writing: Gauge,
    kept_bytes: Gauge,
    ready: Gauge,
    rows: Gauge,
    index_jobs: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("adventures");
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let first_token = Histogram::new(exponential_buckets(0.005, 2.0, 16));
        registry.register_with_unit("request_duration", "Until the response began", Unit::Seconds, seconds.clone());
        registry.register_with_unit("first_token", "From a slot to the first text", Unit::Seconds, first_token.clone());
        let requests = Family::default();
        registry.register("requests", "Requests, by route and status", requests.clone());
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let refused = counter(&mut registry, "refused", "Requests for which the queue had no room");
        let prompt_tokens = counter(&mut registry, "prompt_tokens", "Tokens of prompts");
        let cached_tokens = counter(&mut registry, "cached_tokens", "Tokens of prompts that were not read again");
        let generated_tokens = counter(&mut registry, "generated_tokens", "Tokens that were written");
        let drafted_tokens = counter(&mut registry, "drafted_tokens", "Tokens that were guessed from earlier text");
        let accepted_tokens = counter(&mut registry, "accepted_tokens", "Guessed tokens that were right");
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let embedded_texts = gauge(&mut registry, "embedded_texts", "Texts that were embedded");
        let running = gauge(&mut registry, "slots_in_use", "Requests that have a slot");
        let waiting = gauge(&mut registry, "queue_length", "Requests that wait for a slot");
        let reading = gauge(&mut registry, "answers_reading", "Answers whose prompt is being read");
        let writing = gauge(&mut registry, "answers_writing", "Answers that are being written");
        let kept_bytes = gauge(&mut registry, "kept_bytes", "Bytes kept of prompts");
        let ready = gauge(&mut registry, "ready", "1 once models and library are there");
        let rows = gauge(&mut registry, "library_passages", "Passages of the version that is served");
        let index_jobs = gauge(&mut registry, "index_jobs", "Changes of ColBERT indexes that wait or are being made");
        Self {
            registry,
            requests,
            seconds,
            refused,
            first_token,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            drafted_tokens,
            accepted_tokens,
            embedded_texts,
            running,
            waiting,
            reading,
            writing,
            kept_bytes,
            ready,
            rows,
            index_jobs,
        }
    }

    pub(super) fn answered(&self, route: &str, status: u16, seconds: f64) {
        self.requests.get_or_create(&Route { route: route.to_owned(), status: u32::from(status) }).inc();
        self.seconds.observe(seconds);
    }

    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    pub(super) fn first_token(&self, seconds: f64) {
        self.first_token.observe(seconds);
    }

    /// Counts what an answer took, once it is over.
    pub(super) fn generated(&self, stats: &GenerationStats) {
        let count = |counter: &Counter, n: usize| counter.inc_by(n as u64);
        count(&self.prompt_tokens, stats.prompt_tokens);
        count(&self.cached_tokens, stats.cached_tokens);
        count(&self.generated_tokens, stats.generated_tokens);
        count(&self.drafted_tokens, stats.drafted_tokens);
        count(&self.accepted_tokens, stats.accepted_tokens);
    }

    /// Returns all of it in Prometheus' text format.
    pub(super) fn text(&self, app: &App) -> Result<String, std::fmt::Error> {
        let set = |gauge: &Gauge, n: usize| gauge.set(n as i64);
        let (running, waiting) = app.queue.load();
        set(&self.running, running);
        set(&self.waiting, waiting);
        if let Some(service) = app.service.get() {
            set(&self.ready, 1);
            set(&self.embedded_texts, service.embedder.batches.texts());
            if let Some(writes) = &service.generator {
                let load = writes.model.engine_load();
                set(&self.reading, load.reading);
                set(&self.writing, load.writing);
                set(&self.kept_bytes, writes.model.kept_bytes());
            }
            if let Some(indexes) = &service.indexes {
                set(&self.index_jobs, indexes.jobs_left());
            }
            if let Some(library) = &service.library {
                set(&self.rows, library.snapshot().rows);
            }
        }
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}
