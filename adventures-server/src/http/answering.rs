//! What all routes that compute have in common: an end in time, and counts.

use super::problem::Problem;
use super::{App, Phase};
use crate::answer::Answer;
use std::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Ends what takes longer than the deadline, or than the service runs.
pub(super) async fn within<T>(
    app: &App,
    work: impl Future<Output = Result<T, impl Into<Problem>>>,
) -> Result<T, Problem> {
    let mut phase = app.phase.subscribe();
    tokio::select! {
        done = work => done.map_err(Into::into),
        () = tokio::time::sleep(app.options.deadline) => Err(Problem::deadline()),
        _ = phase.wait_for(|phase| *phase == Phase::Stopped) => Err(Problem::stopping()),
    }
}

/// Counts an answer when it ends, however it does.
pub(super) struct Counted<'a> {
    app: &'a App,
    pub(super) answer: Answer,
    began: Instant,
    first: bool,
    span: Span,
}

impl<'a> Counted<'a> {
    pub(super) fn new(app: &'a App, answer: Answer) -> Self {
        let span = tracing::debug_span!("generate", prompt = Empty, cached = Empty, generated = Empty);
        Self { app, answer, began: Instant::now(), first: true, span }
    }

    pub(super) async fn next(&mut self) -> Result<Option<String>, Problem> {
        let piece = self.answer.next().instrument(self.span.clone()).await?;
        if std::mem::take(&mut self.first) && self.answer.stats().is_some() {
            self.app.metrics.first_token(self.began.elapsed().as_secs_f64());
        }
        Ok(piece)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(stats) = self.answer.stats() {
            self.app.metrics.generated(&stats);
            self.span.record("prompt", stats.prompt_tokens);
            self.span.record("cached", stats.cached_tokens);
            self.span.record("generated", stats.generated_tokens);
        }
    }
}
