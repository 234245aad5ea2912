//! Queries to the documents nearest to them, where vectors are kept as they are: all are compared.

use super::search::{Found, keep, order};
use super::snapshot::Snapshot;
use crate::error::Result;
use crate::kernels::panels::maxsim::{Documents, Queries};
use crate::kernels::panels::{Kernel, Precision};
use crate::kernels::threads::Threads;
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;

/// Queries that go over the documents together: what is read from memory is read once for all of them.
const TOGETHER: usize = 16;
/// Tokens of neighbouring documents that a thread takes at once, about.
const RUN: usize = 1 << 11;

/// Neighbouring documents of a part.
struct Run {
    part: usize,
    /// The place of the first.
    first: usize,
    /// Where each begins among the part's tokens, and where the last ends.
    offsets: Vec<usize>,
}

impl Snapshot {
    /// Returns the `k` documents nearest to each of `queries`, `(n, dim)`, as [`Self::search`] does. A score is that of
    /// [`crate::kernels::panels::maxsim`], to the last bit, whatever else is searched for.
    ///
    /// Runs on the rayon pool it is called in.
    pub(super) fn compare(
        &self,
        queries: &[&[f32]],
        k: usize,
        documents: impl Iterator<Item = usize>,
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<Found>>> {
        let runs = self.runs(documents);
        let mut found = Vec::with_capacity(queries.len());
        for queries in queries.chunks(TOGETHER) {
            let packed = Queries::pack(queries, self.manifest.dim, Kernel::best(Precision::F32))?;
            let none = || vec![Vec::new(); queries.len()];
            let one = |mut best: Vec<Vec<Found>>, run: &Run| -> Result<_> {
                self.compare_run(&packed, run, &mut best, cancel)?;
                for best in &mut best {
                    if best.len() > k.saturating_mul(4) {
                        keep(best, k, order);
                    }
                }
                Ok(best)
            };
            let both = |mut one: Vec<Vec<Found>>, other: Vec<Vec<Found>>| -> Result<_> {
                for (one, other) in one.iter_mut().zip(other) {
                    one.extend(other);
                }
                Ok(one)
            };
            found.extend(runs.par_iter().try_fold(none, one).try_reduce(none, both)?);
        }
        for found in &mut found {
            keep(found, k, order);
            found.sort_unstable_by(order);
        }
        Ok(found)
    }

    fn compare_run(&self, queries: &Queries, run: &Run, best: &mut [Vec<Found>], cancel: &AtomicBool) -> Result<()> {
        let part = &self.parts[run.part];
        let vectors = part.segment.vectors(0..part.segment.token_count());
        let documents = Documents { vectors, dim: self.manifest.dim, offsets: &run.offsets };
        let scores = queries.scores(documents, Threads::One, cancel)?;
        for (best, scores) in best.iter_mut().zip(scores.chunks_exact(run.offsets.len() - 1)) {
            best.extend(scores.iter().zip(run.offsets.windows(2)).enumerate().map(|(i, (score, span))| Found {
                document: part.start + run.first + i,
                // One without tokens has nothing that could be near.
                score: if span[0] == span[1] { 0.0 } else { *score },
            }));
        }
        Ok(())
    }

    /// Cuts rising documents into runs.
    fn runs(&self, documents: impl Iterator<Item = usize>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for document in documents {
            let (part, place) = self.part_of(document);
            let range = self.parts[part].segment.range(place);
            let last = runs.last_mut().filter(|run| {
                let next = run.part == part && run.first + run.offsets.len() - 1 == place;
                next && range.end - run.offsets[0] <= RUN
            });
            match last {
                Some(run) => run.offsets.push(range.end),
                None => runs.push(Run { part, first: place, offsets: vec![range.start, range.end] }),
            }
        }
        runs
    }
}
