//! Search in a published library: by vectors of passages or of their tokens, alone or fused with full text.

use super::hit::{Hit, hits, row_of};
use super::{Snapshot, filter};
use crate::turns::Ends;
use adventures::{Error, SearchOptions, TokenVectors};
use arrow_array::cast::AsArray;
use arrow_array::{Float32Array, RecordBatch};
use futures_util::TryStreamExt;
use lance::dataset::scanner::Scanner;
use lance_index::scalar::FullTextSearchQuery;
use lance_index::scalar::inverted::query::{FtsQuery, MatchQuery};
use lance_linalg::distance::DistanceType;
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

// The Python package has the same figures, and says where they are from.
const MEANING: f64 = 0.5;
const DEPTH: usize = 50;
const PROBES: usize = 96;
const REFINE: u32 = 2;
/// Equally good passages come in any order; with a few to spare, the order of their ids decides which are returned.
const SPARE: usize = 16;
/// Where more than that are alike, how much deeper a search looks each time, and how deep at most.
const DEEPER: usize = 8;
const DEEPEST: usize = 10_000;

/// A question to a library.
#[derive(Debug, Clone)]
pub struct Query {
    /// Its words, for a hybrid search.
    pub text: String,
    /// Its vector, of unit length.
    pub vector: Vec<f32>,
    /// The vectors of its tokens, where it is compared by them.
    pub tokens: Option<Arc<TokenVectors>>,
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
        dense(snapshot, query, k, sql.as_deref()).await?
    };
    found.truncate(k);
    Ok(found)
}

/// The nearest passages; of those that are equally near, the lower ids, however many they are.
async fn dense(snapshot: &Snapshot, query: &Query, k: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    let mut limit = k + SPARE;
    loop {
        let found = leg(snapshot, query, limit, sql).await?;
        let (Some(kept), Some(last)) = (found.get(k - 1), found.last()) else { return Ok(found) };
        if found.len() < limit || limit >= DEEPEST || kept.score > last.score {
            return Ok(found);
        }
        limit = DEEPEST.min(limit * DEEPER);
    }
}

/// By fusion of the nearest vectors and the best word matches.
async fn hybrid(snapshot: &Snapshot, query: &Query, k: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    let depth = DEPTH.max(5 * k);
    let near = leg(snapshot, query, depth, sql).await?;
    let mut matching = matching(snapshot, query, depth, sql).await?;
    if query.tokens.is_some() {
        // What is not near by its tokens counts as the last of what is.
        for (_, hit) in &mut matching {
            hit.score = f64::NEG_INFINITY;
        }
    }
    Ok(fused(near, matching))
}

/// The passages of both legs by a score from 0 to 1: half for similarity, counted from that of the last of the nearest to
/// that of the first, half for the words, by the best of them.
fn fused(near: Vec<Hit>, matching: Vec<(f32, Hit)>) -> Vec<Hit> {
    let most = near.first().map_or(0.0, |hit| hit.score);
    let least = near.last().map_or(0.0, |hit| hit.score);
    let spread = if most > least { most - least } else { 1.0 };
    let best = matching.iter().map(|(score, _)| f64::from(*score)).fold(0.0, f64::max);
    let best = if best > 0.0 { best } else { 1.0 };
    let mut found: HashMap<String, Hit> = HashMap::new();
    for hit in near {
        let share = if most > least { (hit.score - least) / spread } else { 1.0 };
        found.insert(hit.id.clone(), Hit { score: MEANING * share, ..hit });
    }
    for (score, hit) in matching {
        let share = ((hit.score - least) / spread).clamp(0.0, 1.0);
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

/// The passages nearest by their vectors, or by their tokens where the query has some; the best first.
async fn leg(snapshot: &Snapshot, query: &Query, limit: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    match &query.tokens {
        None => nearest(snapshot, query, limit, sql).await,
        Some(tokens) => by_tokens(snapshot, query, tokens, limit, sql).await,
    }
}

/// The passages whose tokens fit those of a query best; a filter is asked of the table first.
async fn by_tokens(
    snapshot: &Snapshot,
    query: &Query,
    tokens: &Arc<TokenVectors>,
    limit: usize,
    sql: Option<&str>,
) -> Result<Vec<Hit>, Error> {
    let late = snapshot.late()?;
    let index = late.index()?.clone();
    let among = match sql {
        None => None,
        Some(sql) => Some(ids(snapshot, sql).await?),
    };
    if among.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let ends = Ends::default();
    let (tokens, dim, cancel) = (Arc::clone(tokens), late.made.dim(), ends.flag());
    let found = tokio::task::spawn_blocking(move || {
        let among: Option<Vec<&str>> = among.as_ref().map(|ids| ids.iter().map(String::as_str).collect());
        let options = SearchOptions { k: limit, ..SearchOptions::default() };
        let found = index.search(&tokens.vectors, dim, &tokens.offsets[1..], &options, among.as_deref(), &cancel)?;
        Ok(found.queries.iter().flatten().map(|hit| (found.id(hit).to_owned(), hit.score)).collect())
    });
    let found: Result<HashMap<String, f32>, Error> =
        found.await.unwrap_or_else(|problem| Err(Error::Busy(format!("the search was stopped: {problem}"))));
    // The question was checked: what is wrong now is wrong with the files.
    let scores = found.map_err(|problem| match problem {
        Error::Cancelled | Error::Busy(_) => problem,
        problem => read(&problem),
    })?;
    if scores.is_empty() {
        return Ok(Vec::new());
    }
    let listed = |texts: &mut dyn Iterator<Item = &str>| texts.map(quoted).collect::<Vec<_>>().join(", ");
    let named = listed(&mut scores.keys().map(String::as_str));
    // Large tables have an index of rows' names: an id is a row's with its ordinal.
    let of = listed(&mut scores.keys().map(|id| row_of(id)));
    let mut found = Vec::with_capacity(scores.len());
    for batch in rows(snapshot, &columns(snapshot), &format!("row_id IN ({of}) AND id IN ({named})")).await? {
        found.extend(hits(&batch, &query.vector, &snapshot.source).map_err(|e| read(&e))?);
    }
    for hit in &mut found {
        hit.score = scores.get(&hit.id).copied().map_or(f64::NEG_INFINITY, f64::from);
    }
    found.sort_by(best_first);
    Ok(found)
}

/// The ids of the passages that a filter lets through.
async fn ids(snapshot: &Snapshot, sql: &str) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for batch in rows(snapshot, &["id"], sql).await? {
        let ids = batch.column(0).as_string_opt::<i32>().ok_or_else(|| read(&"the library's ids are no text"))?;
        found.extend(ids.iter().flatten().map(str::to_owned));
    }
    Ok(found)
}

/// Some columns of the passages that a condition lets through.
pub(super) async fn rows(snapshot: &Snapshot, columns: &[&str], sql: &str) -> Result<Vec<RecordBatch>, Error> {
    let mut search = snapshot.table.scan();
    search.project(columns).and_then(|search| search.filter(sql)).map_err(|e| read(&e))?;
    let batches = search.try_into_stream().await.map_err(|e| read(&e))?;
    batches.try_collect().await.map_err(|e| read(&e))
}

/// A text as SQL has it.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
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

/// That the library cannot be read is not the client's fault, nor where it is the client's business.
pub(super) fn read(problem: &dyn Display) -> Error {
    tracing::error!("the library cannot be read: {problem}");
    Error::io("cannot read the library", std::io::Error::other("the service's log says why"))
}
