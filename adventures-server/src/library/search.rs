//! Search in a published library: dense, or dense and full text fused.

use super::hit::{Hit, hits};
use super::{Snapshot, filter};
use adventures::Error;
use arrow_array::Float32Array;
use futures_util::TryStreamExt;
use lance::dataset::scanner::Scanner;
use lance_index::scalar::FullTextSearchQuery;
use lance_index::scalar::inverted::query::{FtsQuery, MatchQuery};
use lance_linalg::distance::DistanceType;
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::HashMap;

// The Python package has the same figures, and says where they are from.
const MEANING: f64 = 0.5;
const DEPTH: usize = 50;
const PROBES: usize = 32;
const REFINE: u32 = 5;
/// Passages of equal text come in any order; with a few to spare, the order of their ids decides which are returned.
const SPARE: usize = 16;

/// A question to a library.
#[derive(Debug, Clone)]
pub struct Query {
    /// Its words, for a hybrid search.
    pub text: String,
    /// Its vector, of unit length.
    pub vector: Vec<f32>,
    /// How many passages at most.
    pub k: usize,
    /// Whether full-text search takes part.
    pub hybrid: bool,
    /// Which passages may answer.
    pub filter: Map<String, Value>,
}

pub(super) async fn search(snapshot: &Snapshot, query: &Query) -> Result<Vec<Hit>, Error> {
    let sql = filter::condition(&query.filter, &snapshot.schema).map_err(Error::Invalid)?;
    let k = query.k.min(snapshot.rows);
    if k == 0 {
        return Ok(Vec::new());
    }
    let mut found = if query.hybrid {
        hybrid(snapshot, query, k, sql.as_deref()).await?
    } else {
        nearest(snapshot, query, k + SPARE, sql.as_deref()).await?
    };
    found.truncate(k);
    Ok(found)
}

/// By fusion of the nearest vectors and the best word matches.
async fn hybrid(snapshot: &Snapshot, query: &Query, k: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    let depth = DEPTH.max(5 * k);
    let near = nearest(snapshot, query, depth, sql).await?;
    Ok(fused(near, matching(snapshot, query, depth, sql).await?))
}

/// The passages of both legs by a score from 0 to 1: half for similarity, counted from that of the last of the nearest to
/// that of the first, half for the words, by the best of them.
fn fused(near: Vec<Hit>, matching: Vec<(f32, Hit)>) -> Vec<Hit> {
    let most = near.first().map_or(0.0, |hit| f64::from(hit.similarity));
    let least = near.last().map_or(0.0, |hit| f64::from(hit.similarity));
    let spread = if most > least { most - least } else { 1.0 };
    let best = matching.iter().map(|(score, _)| f64::from(*score)).fold(0.0, f64::max);
    let best = if best > 0.0 { best } else { 1.0 };
    let mut found: HashMap<String, Hit> = HashMap::new();
    for hit in near {
        let share = if most > least { (f64::from(hit.similarity) - least) / spread } else { 1.0 };
        found.insert(hit.id.clone(), Hit { score: MEANING * share, ..hit });
    }
    for (score, hit) in matching {
        let share = ((f64::from(hit.similarity) - least) / spread).clamp(0.0, 1.0);
        let known = found.entry(hit.id.clone()).or_insert(Hit { score: MEANING * share, ..hit });
        known.score += (1.0 - MEANING) * f64::from(score) / best;
    }
    let mut found: Vec<Hit> = found.into_values().collect();
    found.sort_by(best_first);
    found
}

fn best_first(a: &Hit, b: &Hit) -> Ordering {
    b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id))
}

fn columns(snapshot: &Snapshot) -> Vec<&str> {
    let metadata = snapshot.schema.field_with_name("metadata").is_ok();
    ["id", "text", "key", "vector"].into_iter().chain(metadata.then_some("metadata")).collect()
}

async fn nearest(snapshot: &Snapshot, query: &Query, limit: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    let mut search = snapshot.table.scan();
    let vector = Float32Array::from(query.vector.clone());
    search.nearest("vector", &vector, limit).map_err(|e| read(&e))?.distance_metric(DistanceType::Cosine);
    if snapshot.has_vector_index {
        search.nprobes(PROBES).refine(REFINE);
    }
    search.project(&columns(snapshot)).map_err(|e| read(&e))?;
    let mut found = run(search, snapshot, query, sql).await?.0;
    found.sort_by(best_first);
    Ok(found)
}

async fn matching(
    snapshot: &Snapshot,
    query: &Query,
    limit: usize,
    sql: Option<&str>,
) -> Result<Vec<(f32, Hit)>, Error> {
    if !snapshot.has_text_index {
        return Ok(Vec::new());
    }
    // A match query is only words: quotes and operators in it are not a syntax that could be wrong.
    let words = MatchQuery::new(query.text.clone()).with_column(Some("text".into()));
    let words = FullTextSearchQuery::new_query(FtsQuery::Match(words)).limit(Some(limit as i64));
    let mut search = snapshot.table.scan();
    let columns: Vec<&str> = columns(snapshot).into_iter().chain(["_score"]).collect();
    search.full_text_search(words).and_then(|search| search.project(&columns)).map_err(|e| read(&e))?;
    search.limit(Some(limit as i64), None).map_err(|e| read(&e))?;
    let (found, scores) = run(search, snapshot, query, sql).await?;
    let mut found: Vec<(f32, Hit)> = scores.into_iter().zip(found).collect();
    found.sort_by(|(a, left), (b, right)| b.total_cmp(a).then_with(|| left.id.cmp(&right.id)));
    Ok(found)
}

/// The hits of a search that a filter narrows, with Lance's own scores where it has any.
async fn run(
    mut search: Scanner,
    snapshot: &Snapshot,
    query: &Query,
    sql: Option<&str>,
) -> Result<(Vec<Hit>, Vec<f32>), Error> {
    if let Some(sql) = sql {
        search.filter(sql).map_err(|e| read(&e))?;
    }
    // What does not pass the filter takes no place of what does.
    search.prefilter(true);
    let mut batches = search.try_into_stream().await.map_err(|e| read(&e))?;
    let (mut found, mut scores) = (Vec::new(), Vec::new());
    while let Some(batch) = batches.try_next().await.map_err(|e| read(&e))? {
        found.extend(hits(&batch, &query.vector, &snapshot.source).map_err(|e| read(&e))?);
        if let Some(column) = batch.column_by_name("_score") {
            let column = arrow_array::cast::as_primitive_array::<arrow_array::types::Float32Type>(column);
            scores.extend_from_slice(column.values());
        }
    }
    Ok((found, scores))
}

fn read(problem: &dyn std::fmt::Display) -> Error {
    Error::io("cannot read the library", std::io::Error::other(problem.to_string()))
}
