//! `POST /v1/embeddings`: texts to vectors.

use super::answering::within;
use super::openai::{Texts, Usage};
use super::problem::{ErrorBody, Problem};
use super::{App, names, no_model};
use actix_web::web::{Data, Json};
use actix_web::{HttpResponse, Result as Response};
use adventures::Kind;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

/// The most texts of a request, as OpenAI has it.
pub(super) const MAX_TEXTS: usize = 2048;

/// Texts to be embedded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what changes no answer is read so that it is not refused")]
pub(super) struct EmbeddingRequest {
    /// The embedder's name, or `default`.
    model: String,
    /// A text or several, 2,048 at most.
    input: Texts,
    /// How a vector is written: `float` (a list) or `base64` (of little-endian 32-bit floats).
    encoding_format: Option<String>,
    /// Only the model's own.
    dimensions: Option<u64>,
    /// Whether the texts are passages, to be found, or queries [default: passage]
    input_type: Option<String>,
    /// Changes no vector.
    #[schema(value_type = Option<String>)]
    user: Option<IgnoredAny>,
}

/// The vectors of some texts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingList {
    /// `list`.
    object: &'static str,
    /// A vector for each text, in their order.
    data: Vec<EmbeddingItem>,
    /// The embedder's name.
    model: String,
    usage: Usage,
    /// The texts that were longer than the model reads, and were cut.
    truncated: Vec<usize>,
}

/// The vector of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingItem {
    /// `embedding`.
    object: &'static str,
    index: usize,
    /// A list of numbers, or a base64 text.
    #[schema(value_type = Object)]
    embedding: Value,
}

/// Embeds texts; vectors have unit length.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "The vectors", body = EmbeddingList),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ),
)]
pub(super) async fn embeddings(app: Data<App>, Json(request): Json<EmbeddingRequest>) -> Response<HttpResponse> {
    let service = app.service()?;
    let embedder = &service.embedder;
    if !names(&request.model, &embedder.name) {
        return Err(no_model(&request.model, &embedder.name).into());
    }
    if let Some(n) = request.dimensions.filter(|n| *n != embedder.dim as u64) {
        let message = format!("dimensions must be {}, those of {}, not {n}", embedder.dim, embedder.name);
        return Err(Problem::invalid("dimensions", message).into());
    }
    let packed = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Problem::invalid("encoding_format", "encoding_format must be float or base64").into()),
    };
    let kind = match request.input_type.as_deref() {
        None | Some("passage" | "document") => Kind::Passage,
        Some("query") => Kind::Query,
        Some(_) => return Err(Problem::invalid("input_type", "input_type must be passage or query").into()),
    };
    let texts = request.input.into_vec();
    check_texts("input", &texts)?;
    let (dim, name) = (embedder.dim, embedder.name.clone());
    let found = within(&app, embedder.batches.embed(texts, kind)).await?;
    let write = |vector: &[f32]| {
        if packed {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            json!(BASE64_STANDARD.encode(bytes))
        } else {
            json!(vector)
        }
    };
    let items = found.vectors.chunks_exact(dim).enumerate();
    let data = items.map(|(index, vector)| EmbeddingItem { object: "embedding", index, embedding: write(vector) });
    let tokens = found.tokens.iter().map(|n| *n as usize).sum();
    Ok(HttpResponse::Ok().json(EmbeddingList {
        object: "list",
        data: data.collect(),
        model: name,
        usage: Usage::read(tokens),
        truncated: found.truncated,
    }))
}

/// Refuses too many texts, and empty ones.
pub(super) fn check_texts(param: &str, texts: &[String]) -> Result<(), Problem> {
    if texts.is_empty() || texts.len() > MAX_TEXTS {
        let message = format!("{param} must be from 1 to {MAX_TEXTS} texts, not {}", texts.len());
        return Err(Problem::invalid(param, message));
    }
    if let Some(i) = texts.iter().position(String::is_empty) {
        return Err(Problem::invalid(param, format!("{param}[{i}] is empty")));
    }
    Ok(())
}
