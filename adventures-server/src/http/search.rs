//! `POST /v1/search`: a question to the passages nearest to it.

use super::answering::within;
use super::problem::{ErrorBody, Problem};
use super::{App, SearchSettings, check_length};
use crate::answer::{self, Found};
use crate::library::{Hit, RetrievalKind};
use actix_web::web::{Data, Json};
use actix_web::{HttpResponse, Result as Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A question to the library.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchRequest {
    /// The question.
    query: String,
    /// How many passages at most [default: the service's setting]
    #[schema(minimum = 1, maximum = 100)]
    k: Option<usize>,
    /// What finds passages; `colbert` where the library was synced with token vectors [default: the service's setting]
    retrieval: Option<RetrievalKind>,
    /// Whether words count, too [default: the service's setting]
    hybrid: Option<bool>,
    /// Whether the reranker puts them in order [default: where the service has one]
    rerank: Option<bool>,
    /// How many passages before and after it in its row a hit's text takes in; hits that meet become one [default: the service's
    /// setting]
    #[schema(maximum = 100)]
    expand: Option<usize>,
    /// Which passages may be found: `{"aisle": "frost", "price": {"lt": 20}, "kind": ["boots", "cloak"]}`.
    #[schema(value_type = Option<Object>)]
    r#where: Option<Map<String, Value>>,
    /// The cosine similarity below which a passage is left out [default: none is]
    min_similarity: Option<f32>,
}

/// What was found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SearchResponse {
    /// Best first.
    hits: Vec<Hit>,
    /// Whether the question was longer than the embedder reads: nothing was looked for by its end.
    truncated: bool,
    /// The ids of the hits of which the reranker read the beginning only.
    cut: Vec<String>,
}

/// Finds the passages nearest to a question.
#[utoipa::path(
    post, path = "/v1/search", tag = "library", request_body = SearchRequest,
    responses(
        (status = 200, description = "The passages", body = SearchResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn search(app: Data<App>, Json(request): Json<SearchRequest>) -> Response<HttpResponse> {
    let service = app.service()?;
    if request.query.trim().is_empty() {
        return Err(Problem::invalid("query", "query is empty").into());
    }
    check_length("query", request.query.len(), service.embedder.max_tokens)?;
    let least = request.min_similarity.unwrap_or(-1.0);
    let SearchRequest { query, k, retrieval, hybrid, rerank, expand, r#where: filter, .. } = request;
    let min_similarity = Some(least);
    let settings = SearchSettings { k, retrieval, hybrid, rerank, expand, filter, min_similarity };
    let retrieval = app.retrieval(settings)?;
    let Found { mut hits, truncated, mut cut } = within(&app, answer::search(service, &query, &retrieval)).await?;
    hits.retain(|hit| hit.similarity >= least);
    cut.retain(|id| hits.iter().any(|hit| hit.id == *id));
    Ok(HttpResponse::Ok().json(SearchResponse { hits, truncated, cut }))
}
