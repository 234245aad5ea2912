//! Search in a published library: dense, or dense and full text fused.

use super::hit::{Hit, hits};
use super::{Snapshot, filter};
use adventures::Error;
use futures_util::TryStreamExt;
use lancedb::DistanceType;
use lancedb::index::scalar::{FtsQuery, FullTextSearchQuery, MatchQuery};
use lancedb::query::{ExecutableQuery, QueryBase, Select};
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::HashMap;

// The Python package has the same figures, and says where they are from.
const RRF: f64 = 10.0;
const DEPTH: usize = 50;
const PROBES: usize = 64;
const REFINE: u32 = 10;
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

/// By reciprocal rank fusion (Cormack, Clarke, Büttcher 2009) of the nearest vectors and the best word matches.
async fn hybrid(snapshot: &Snapshot, query: &Query, k: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    let depth = DEPTH.max(5 * k);
    let mut found: HashMap<String, Hit> = HashMap::new();
    for leg in [nearest(snapshot, query, depth, sql).await?, matching(snapshot, query, depth, sql).await?] {
        for (rank, hit) in leg.into_iter().enumerate() {
            let part = 1.0 / (RRF + (rank + 1) as f64);
            found.entry(hit.id.clone()).and_modify(|known| known.score += part).or_insert(Hit { score: part, ..hit });
        }
    }
    let mut found: Vec<Hit> = found.into_values().collect();
    found.sort_by(best_first);
    Ok(found)
}

fn best_first(a: &Hit, b: &Hit) -> Ordering {
    b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id))
}

fn columns(snapshot: &Snapshot) -> Vec<&str> {
    let metadata = snapshot.schema.field_with_name("metadata").is_ok();
    ["id", "text", "key", "vector"].into_iter().chain(metadata.then_some("metadata")).collect()
}

async fn nearest(snapshot: &Snapshot, query: &Query, limit: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    let mut search = snapshot
        .table
        .query()
        .nearest_to(query.vector.as_slice())
        .map_err(|e| read(&e))?
        .column("vector")
        .distance_type(DistanceType::Cosine)
        .select(Select::columns(&columns(snapshot)))
        .limit(limit);
    if snapshot.has_vector_index {
        search = search.nprobes(PROBES).refine_factor(REFINE);
    }
    if let Some(sql) = sql {
        search = search.only_if(sql);
    }
    let mut found = run(search, snapshot, query).await?.0;
    found.sort_by(best_first);
    Ok(found)
}

async fn matching(snapshot: &Snapshot, query: &Query, limit: usize, sql: Option<&str>) -> Result<Vec<Hit>, Error> {
    if !snapshot.has_text_index {
        return Ok(Vec::new());
    }
    // A match query is only words: quotes and operators in it are not a syntax that could be wrong.
    let words = MatchQuery::new(query.text.clone()).with_column(Some("text".into()));
    let columns: Vec<&str> = columns(snapshot).into_iter().chain(["_score"]).collect();
    let mut search = snapshot
        .table
        .query()
        .full_text_search(FullTextSearchQuery::new_query(FtsQuery::Match(words)))
        .select(Select::columns(&columns))
        .limit(limit);
    if let Some(sql) = sql {
        search = search.only_if(sql);
    }
    let (found, scores) = run(search, snapshot, query).await?;
    let mut found: Vec<(f32, Hit)> = scores.into_iter().zip(found).collect();
    found.sort_by(|(a, left), (b, right)| b.total_cmp(a).then_with(|| left.id.cmp(&right.id)));
    Ok(found.into_iter().map(|(_, hit)| hit).collect())
}

/// The hits of a search in LanceDB, with its own scores where it has any.
async fn run(search: impl ExecutableQuery, snapshot: &Snapshot, query: &Query) -> Result<(Vec<Hit>, Vec<f32>), Error> {
    let mut batches = search.execute().await.map_err(|e| read(&e))?;
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
