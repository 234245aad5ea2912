//! A query to the documents nearest to it.
//!
//! Of few tokens all are scored. Of many, as in WARP (<https://arxiv.org/abs/2501.17788>), each token of the query looks up the
//! documents of its nearest centroids, and a document that it does not find counts as one at the edge of those; the best are
//! scored with all their tokens.

use super::codec::Codec;
use super::snapshot::{Bits, Snapshot};
use crate::error::{Error, Result, invalid};
use crate::kernels::late::{self, Query, Scratch};
use crate::kernels::panels::{self, Linear, Precision, Rounded, Then};
use crate::kernels::threads::Threads;
use rayon::prelude::*;
use std::cmp::Ordering;
use std::sync::atomic::{self, AtomicBool};

/// An index of fewer tokens is searched without looking for candidates.
const ALL: usize = 1 << 16;
/// Tokens that are worth a thread of their own.
const SHARE: usize = 1 << 14;
/// Lists that are read for each token of the query, by default, of up to so many documents. The more there are, the more of them
/// have a token that is nearer than those that the best documents have.
const PROBES: f64 = 32.0;
const MANY: f64 = 6400.0;
/// Candidates that are scored at least, by default: so many documents, and so many tokens. The shorter documents are, the less one
/// costs, and the more of them are nearly as good by the lists alone.
const CANDIDATES: usize = 512;
const SCORED: usize = 40_000;
/// The most vectors of a query.
pub(super) const MAX_QUERY: usize = 1 << 12;

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchOptions {
    /// How many documents to return.
    pub k: usize,
    /// The nearest centroids of each token of the query whose documents are looked at; where it is `None`, 32 of an index of up to
    /// 6,400 documents, and more as the root of what it has beyond: 126 of 100,000.
    pub probes: Option<usize>,
    /// The documents that are scored with all their tokens; where it is `None`, the largest of 512, 16 `k`, and those that have
    /// 40,000 tokens.
    pub candidates: Option<usize>,
    /// Whether all documents are scored.
    pub exhaustive: bool,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self { k: 10, probes: None, candidates: None, exhaustive: false }
    }
}

impl SearchOptions {
    /// How many lists are read for each token of the query, of an index of `documents`.
    fn lists(&self, documents: usize) -> f64 {
        let more = (documents as f64 / MANY).sqrt().max(1.0);
        self.probes.map_or(PROBES * more, |probes| probes as f64)
    }

    /// How many documents of an index of `tokens` in `documents` are scored.
    fn wanted(&self, tokens: usize, documents: usize) -> usize {
        let least = (SCORED / (tokens / documents.max(1)).max(1)).max(CANDIDATES);
        self.candidates.unwrap_or(self.k.saturating_mul(16).max(least)).max(self.k)
    }
}

/// A document that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Its number in the snapshot.
    pub document: usize,
    /// The sum of the largest products.
    pub score: f32,
}

/// A query as it is compared with compressed documents.
struct Prepared {
    query: Query,
    /// Its products with the centroids.
    table: Vec<f32>,
}

impl Snapshot {
    /// Returns the documents nearest to each of `queries`, `(n, dim)`, the best first; of two as near, the one that was added
    /// first.
    ///
    /// Of `allowed` documents only, rising, if it is given. Runs on the rayon pool it is called in.
    pub(super) fn search(
        &self,
        queries: &[&[f32]],
        options: &SearchOptions,
        allowed: Option<&[usize]>,
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<Found>>> {
        let counts = [("k", Some(options.k)), ("probes", options.probes), ("candidates", options.candidates)];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == Some(0)) {
            return invalid!("{name}=0: expected at least 1");
        }
        if self.len() == 0 || allowed.is_some_and(<[usize]>::is_empty) {
            return Ok(vec![Vec::new(); queries.len()]);
        }
        let Some(codec) = self.codec.as_deref() else {
            return match allowed {
                Some(allowed) => self.compare(queries, options.k, allowed.iter().copied(), cancel),
                None => self.compare(queries, options.k, self.live(), cancel),
            };
        };
        let one = |query: &&[f32], threads| {
            if cancel.load(atomic::Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            self.search_coded(query, codec, options, allowed, threads)
        };
        match queries {
            [query] => Ok(vec![one(query, Threads::All)?]),
            queries => queries.par_iter().map(|query| one(query, Threads::One)).collect(),
        }
    }

    fn search_coded(
        &self,
        query: &[f32],
        codec: &Codec,
        options: &SearchOptions,
        allowed: Option<&[usize]>,
        threads: Threads<'_>,
    ) -> Result<Vec<Found>> {
        let rows = query.len() / self.manifest.dim;
        let prepared = prepare(query, codec, threads)?;
        let candidates = if !options.exhaustive && self.is_large(allowed) {
            self.candidates(&prepared.table, rows, options, allowed)
        } else if let Some(allowed) = allowed {
            allowed.to_vec()
        } else {
            self.live().collect()
        };
        let score = |scratch: &mut Scratch, document: &usize| {
            let (part, i) = self.place(*document);
            let (tokens, Prepared { query, table }) = (part.segment.tokens(i), &prepared);
            let score = late::score(late::Kernel::best(), query, table, &codec.levels, tokens, scratch);
            Found { document: *document, score }
        };
        let tokens = self.tokens() / self.documents * candidates.len();
        let mut found: Vec<Found> = if threads.count() > 1 && tokens > 2 * SHARE {
            let least = (SHARE * candidates.len() / tokens).max(1);
            candidates.par_iter().with_min_len(least).map_init(Scratch::default, score).collect()
        } else {
            let mut scratch = Scratch::default();
            candidates.iter().map(|document| score(&mut scratch, document)).collect()
        };
        keep(&mut found, options.k, order);
        found.sort_unstable_by(order);
        Ok(found)
    }

    fn is_large(&self, allowed: Option<&[usize]>) -> bool {
        self.tokens() / self.documents * allowed.map_or(self.len(), <[usize]>::len) > ALL
    }

    /// The documents that are worth a score.
    fn candidates(&self, table: &[f32], rows: usize, options: &SearchOptions, allowed: Option<&[usize]>) -> Vec<usize> {
        let count = options.wanted(self.tokens(), self.documents);
        // Of few documents more lists are read, so that as many are found.
        let share = self.len() as f64 / allowed.map_or(self.len(), <[usize]>::len) as f64;
        let lanes = table.len() / self.codec.as_ref().map_or(1, |codec| codec.count());
        let probes = (options.lists(self.documents) * share.sqrt()) as usize;
        let probes = probes.clamp(1, table.len() / lanes);
        let allowed = allowed.map(|allowed| {
            let mut bits = Bits::default();
            for document in allowed {
                bits.insert(*document);
            }
            bits
        });
        // For each document, the last token of the query that found it, and the sum of what they found.
        let mut seen: Vec<(u32, f32)> = vec![(0, 0.0); self.documents];
        let mut touched: Vec<u32> = Vec::new();
        for (i, near) in nearest(table, lanes, rows, probes).into_iter().enumerate() {
            let edge = near.last().map_or(0.0, |(product, _)| *product);
            for (product, centroid) in near {
                for part in &self.parts {
                    for place in part.segment.list(centroid as usize) {
                        let (last, sum) = &mut seen[part.start + place];
                        if *last == i as u32 + 1 {
                            continue;
                        }
                        if *last == 0 {
                            touched.push((part.start + place) as u32);
                        }
                        (*last, *sum) = (i as u32 + 1, *sum + product - edge);
                    }
                }
            }
        }
        let mut found: Vec<Found> = touched
            .into_iter()
            .map(|document| Found { document: document as usize, score: seen[document as usize].1 })
            .filter(|found| {
                let (part, place) = self.place(found.document);
                !part.deleted.has(place) && allowed.as_ref().is_none_or(|allowed| allowed.has(found.document))
            })
            .collect();
        keep(&mut found, count, order);
        found.into_iter().map(|found| found.document).collect()
    }
}

/// The `probes` centroids nearest to each of the first `rows` columns of `table`, the nearest first.
fn nearest(table: &[f32], lanes: usize, rows: usize, probes: usize) -> Vec<Vec<(f32, u32)>> {
    let mut near: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(probes + 1); rows];
    // What a product must exceed, so that it is among the nearest.
    let mut edges = vec![f32::NEG_INFINITY; lanes];
    edges[rows..].fill(f32::INFINITY);
    for (centroid, products) in table.chunks_exact(lanes).enumerate() {
        for (block, (products, edge)) in products.chunks(late::BLOCK).zip(edges.chunks_mut(late::BLOCK)).enumerate() {
            // Most centroids are far from all tokens.
            if !late::any_above(products, edge) {
                continue;
            }
            for lane in 0..products.len() {
                if products[lane] <= edge[lane] {
                    continue;
                }
                let near = &mut near[block * late::BLOCK + lane];
                let at = near.partition_point(|(product, _)| *product >= products[lane]);
                near.insert(at, (products[lane], centroid as u32));
                near.truncate(probes);
                if near.len() == probes {
                    edge[lane] = near[probes - 1].0;
                }
            }
        }
    }
    near
}

fn prepare(query: &[f32], codec: &Codec, threads: Threads<'_>) -> Result<Prepared> {
    let mut padded = query.to_vec();
    padded.resize((query.len() / codec.dim).next_multiple_of(late::BLOCK) * codec.dim, 0.0);
    let packed = Linear::pack(&padded, &[], codec.dim, panels::Kernel::best(Precision::F32))?;
    let mut table = vec![0.0; codec.count() * packed.outputs()];
    packed.apply(&codec.centroids, &mut table, Then::Store, threads, &mut Rounded::new());
    Ok(Prepared { query: Query::new(query, codec.dim, codec.layout), table })
}

/// The best first.
pub(super) fn order(a: &Found, b: &Found) -> Ordering {
    b.score.total_cmp(&a.score).then(a.document.cmp(&b.document))
}

/// Keeps the first `count`, in no order.
pub(super) fn keep(found: &mut Vec<Found>, count: usize, order: impl FnMut(&Found, &Found) -> Ordering) {
    if found.len() > count {
        found.select_nth_unstable_by(count - 1, order);
        found.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_read_of_many_documents_and_more_scored_of_short_ones() {
        let of = |k, candidates, tokens: usize| {
            SearchOptions { k, candidates, ..Default::default() }.wanted(tokens * 1000, 1000)
        };
        assert_eq!((of(10, None, 180), of(10, None, 20), of(10, None, 0)), (512, 2000, 40_000));
        let lists = |probes, documents| SearchOptions { probes, ..Default::default() }.lists(documents) as usize;
        assert_eq!(
            (lists(None, 0), lists(None, 6400), lists(None, 100_000), lists(Some(5), 100_000)),
            (32, 32, 126, 5)
        );
        assert_eq!((of(1000, None, 20), of(10, Some(7), 20), of(10, Some(70), 20)), (16_000, 10, 70));
    }
}
