//! `POST /v1/rerank`: documents in the order of how well they answer a question.

use super::answering::within;
use super::embeddings::check_texts;
use super::openai::Usage;
use super::problem::{ErrorBody, Problem};
use super::{App, check_length, names, no_model};
use crate::service::{Embeds, Reranks};
use actix_web::web::{Data, Json};
use actix_web::{HttpResponse, Result as Response};
use adventures::{Kind, Scores};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Documents to be put in order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RerankRequest {
    /// The reranker's name, the embedder's, or `default`: the first of them that the service has.
    model: Option<String>,
    /// The question.
    query: String,
    /// The documents, 2,048 at most.
    documents: Vec<String>,
    /// How many to return at most [default: all]
    #[schema(minimum = 1)]
    top_n: Option<usize>,
    /// Whether the documents themselves are returned [default: false]
    #[serde(default)]
    return_documents: bool,
}

/// The documents in their new order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RerankResponse {
    /// The model's name.
    model: String,
    /// Best first.
    results: Vec<Ranked>,
    usage: Usage,
    /// The documents that were cut, by index; all where the question was.
    truncated: Vec<usize>,
}

/// A document.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ranked {
    /// Which of the documents, from 0 on.
    index: usize,
    /// The reranker's score; without one the cosine similarity of question and document.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

/// A document's text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Document {
    text: String,
}

/// Puts documents in the order of how well they answer a question.
#[utoipa::path(
    post, path = "/v1/rerank", tag = "library", request_body = RerankRequest,
    responses(
        (status = 200, description = "The order", body = RerankResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn rerank(app: Data<App>, Json(request): Json<RerankRequest>) -> Response<HttpResponse> {
    let service = app.service()?;
    let (embedder, reranker) = (&service.embedder, service.reranker.as_ref());
    let asked = request.model.as_deref().unwrap_or("default");
    let reranker = match reranker {
        Some(reranker) if names(asked, &reranker.name) => Some(reranker),
        _ if names(asked, &embedder.name) => None,
        known => return Err(no_model(asked, known.map_or(&embedder.name, |reranker| &reranker.name)).into()),
    };
    if request.query.trim().is_empty() {
        return Err(Problem::invalid("query", "query is empty").into());
    }
    check_length("query", request.query.len(), embedder.max_tokens)?;
    check_texts("documents", &request.documents)?;
    if request.top_n == Some(0) {
        return Err(Problem::invalid("top_n", "top_n must be 1 or more, not 0").into());
    }
    let documents = if request.return_documents { request.documents.clone() } else { Vec::new() };
    let (name, found) = match reranker {
        Some(Reranks { name, model }) => (name, within(&app, model.compare(&request.query, request.documents)).await?),
        None => (&embedder.name, within(&app, similarities(embedder, request.query, request.documents)).await?),
    };
    let mut order: Vec<(usize, f32)> = found.scores.into_iter().enumerate().collect();
    order.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let text = |index: usize| Document { text: documents[index].clone() };
    let results = order.into_iter().map(|(index, relevance_score)| Ranked {
        index,
        relevance_score,
        document: request.return_documents.then(|| text(index)),
    });
    Ok(HttpResponse::Ok().json(RerankResponse {
        model: name.clone(),
        results: results.collect(),
        usage: Usage::read(found.tokens.iter().map(|n| *n as usize).sum()),
        truncated: found.truncated,
    }))
}

/// The cosine similarities of a question and documents.
async fn similarities(embedder: &Embeds, query: String, documents: Vec<String>) -> adventures::Result<Scores> {
    let query = embedder.batches.embed(vec![query], Kind::Query).await?;
    let count = documents.len();
    let found = embedder.batches.embed(documents, Kind::Passage).await?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    // Some models' vectors are not of unit length.
    let length = |vector: &[f32]| dot(vector, vector).sqrt();
    let cosine = |vector: &[f32]| dot(vector, &query.vectors) / (length(vector) * length(&query.vectors)).max(1e-12);
    let scores = found.vectors.chunks_exact(embedder.dim).map(cosine).collect();
    let tokens = query.tokens.into_iter().chain(found.tokens).collect();
    let truncated = if query.truncated.is_empty() { found.truncated } else { (0..count).collect() };
    Ok(Scores { scores, tokens, truncated })
}
