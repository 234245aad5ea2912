//! `POST /v1/rerank`: documents in the order of how near they are to a question.

use super::answering::within;
use super::embeddings::check_texts;
use super::openai::Usage;
use super::problem::{ErrorBody, Problem};
use super::{App, check_length, names, no_model};
use actix_web::web::{Data, Json};
use actix_web::{HttpResponse, Result as Response};
use adventures::Kind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Documents to be put in order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RerankRequest {
    /// The embedder's name, or `default`.
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
}

/// A document.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ranked {
    /// Which of the documents, from 0 on.
    index: usize,
    /// The cosine similarity of question and document.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

/// A document's text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Document {
    text: String,
}

/// Puts documents in the order of their similarity to a question.
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
    let embedder = &service.embedder;
    if let Some(model) = request.model.filter(|model| !names(model, &embedder.name)) {
        return Err(no_model(&model, &embedder.name).into());
    }
    if request.query.trim().is_empty() {
        return Err(Problem::invalid("query", "query is empty").into());
    }
    check_length("query", request.query.len(), embedder.max_tokens)?;
    check_texts("documents", &request.documents)?;
    if request.top_n == Some(0) {
        return Err(Problem::invalid("top_n", "top_n must be 1 or more, not 0").into());
    }
    let documents = if request.return_documents { request.documents.clone() } else { Vec::new() };
    let query = within(&app, embedder.batches.embed(vec![request.query], Kind::Query)).await?;
    let found = within(&app, embedder.batches.embed(request.documents, Kind::Passage)).await?;
    let cosine = |vector: &[f32]| vector.iter().zip(&query.vectors).map(|(a, b)| a * b).sum::<f32>();
    let mut order: Vec<(usize, f32)> = found.vectors.chunks_exact(embedder.dim).map(cosine).enumerate().collect();
    order.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let text = |index: usize| Document { text: documents[index].clone() };
    let results = order.into_iter().map(|(index, relevance_score)| Ranked {
        index,
        relevance_score,
        document: request.return_documents.then(|| text(index)),
    });
    let tokens = query.tokens.iter().chain(&found.tokens).map(|n| *n as usize).sum();
    let results = results.collect();
    Ok(HttpResponse::Ok().json(RerankResponse { model: embedder.name.clone(), results, usage: Usage::read(tokens) }))
}
