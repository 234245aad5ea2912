//! Texts to a vector for each token, for all who search and index.

use crate::models::Located;
use crate::turns::{Ends, Turns};
use adventures::{ColBERT, ColBERTOptions, Error, Precision, TokenVectors};
use std::path::PathBuf;
use std::sync::Arc;
use tracing::Instrument;

/// A `ColBERT` model; requests take turns.
pub struct Colbert {
    /// What it is called.
    pub name: String,
    /// Its weights, and what they are rounded to, as the Python package spells it; empty where they are not known.
    pub revision: String,
    /// The model.
    pub model: ColBERT,
    /// Whose turn it is.
    pub turns: Turns,
    path: PathBuf,
}

impl std::fmt::Debug for Colbert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Colbert").field("name", &self.name).field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Colbert {
    /// Loads a model that was located.
    pub fn load(located: Located, precision: Precision, threads: Option<usize>) -> Result<Self, Error> {
        let Located { path, name, mut revision, .. } = located;
        let model = ColBERT::load(&path, &ColBERTOptions { threads, precision, ..ColBERTOptions::default() })?;
        if precision != Precision::F32 {
            revision = format!("{revision}+{}", precision.name());
        }
        Ok(Self { name, revision, model, turns: Turns::default(), path })
    }

    /// Returns whether this is the model that was located, as it is.
    pub fn is(&self, located: &Located) -> bool {
        self.path == located.path && self.model.precision() == Precision::F32
    }

    /// Returns the vectors of a question; dropping the future takes back what is not computed yet.
    pub async fn question(self: &Arc<Self>, text: String) -> Result<TokenVectors, Error> {
        let _waits = self.turns.enter("search")?;
        let ends = Ends::default();
        let turn = self.turns.next().instrument(tracing::debug_span!("queue")).await;
        let (this, cancel) = (Arc::clone(self), ends.flag());
        let read = tokio::task::spawn_blocking(move || {
            let found = this.model.embed_queries(&[&text], None, &cancel);
            // Only now another may compute.
            drop(turn);
            found
        });
        let read = read.instrument(tracing::debug_span!("embed", texts = 1)).await;
        read.unwrap_or_else(|problem| Err(Error::Busy(format!("reading the question stopped: {problem}"))))
    }
}
