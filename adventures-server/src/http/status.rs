//! How the service is, and what it serves.

use super::problem::{ErrorBody, Problem};
use super::{App, names, no_model, openapi};
use crate::library::RetrievalKind;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Data, Path};
use actix_web::{HttpResponse, Result as Response};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Whether the service runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `loading` or `stopping`.
    pub(super) status: &'static str,
}

/// What is served.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Info {
    /// Of the service.
    version: &'static str,
    /// Seconds since it was started.
    uptime: u64,
    embedder: EmbedderInfo,
    /// The model that puts in order what was found.
    reranker: Option<String>,
    /// The model that reads for the ColBERT indexes.
    colbert: Option<String>,
    generator: Option<GeneratorInfo>,
    library: Option<LibraryInfo>,
    page: PageInfo,
}

#[derive(Debug, Serialize, ToSchema)]
struct EmbedderInfo {
    name: String,
    /// The length of a vector.
    dim: usize,
    /// How many tokens of a text are read.
    max_tokens: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct GeneratorInfo {
    name: String,
    /// The most tokens of prompt and answer together.
    context: usize,
    /// The longest answer.
    max_tokens: usize,
    /// How many answers are written side by side.
    slots: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct LibraryInfo {
    /// How many passages it holds.
    passages: usize,
    /// Of the library's table.
    version: u64,
    /// The Delta table that it mirrors.
    delta: Option<String>,
    /// Its version.
    delta_version: Option<i64>,
    /// What filters may name: column → type.
    #[schema(value_type = Object)]
    columns: Value,
    /// How many passages are searched where a request does not say.
    k: usize,
    /// What finds passages where a request does not say.
    retrieval: RetrievalKind,
    /// The model of its token vectors, where it has some and they can be asked.
    colbert: Option<String>,
    /// Whether words count where a request does not say.
    hybrid: bool,
    /// How many passages before and after it a hit takes in where a request does not say.
    expand: usize,
    /// The cosine similarity below which a passage is not about a question.
    min_similarity: f32,
}

/// What the page shows before the first question.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageInfo {
    title: String,
    greeting: String,
    examples: Vec<String>,
}

/// Tells that the service runs, whether or not it is ready.
#[utoipa::path(get, path = "/health", tag = "status", security(()),
    responses((status = 200, description = "It runs", body = Health)))]
pub(super) async fn health() -> HttpResponse {
    HttpResponse::Ok().json(Health { status: "ok" })
}

/// Tells whether models and library are loaded.
#[utoipa::path(get, path = "/ready", tag = "status", security(()), responses(
    (status = 200, description = "They are", body = Health),
    (status = 503, description = "Not yet, or not any more", body = ErrorBody),
))]
pub(super) async fn ready(app: Data<App>) -> Response<HttpResponse> {
    app.service()?;
    Ok(HttpResponse::Ok().json(Health { status: "ok" }))
}

/// Tells what is served.
#[utoipa::path(get, path = "/info", tag = "status", responses(
    (status = 200, description = "Models, library and settings", body = Info),
    (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
))]
pub(super) async fn info(app: Data<App>) -> Response<HttpResponse> {
    let (service, options) = (app.service()?, &app.options);
    let embedder = &service.embedder;
    let library = service.library.as_ref().map(|library| {
        let snapshot = library.snapshot();
        LibraryInfo {
            passages: snapshot.rows,
            version: snapshot.version,
            delta: snapshot.source.get("table").and_then(Value::as_str).map(str::to_owned),
            delta_version: snapshot.source.get("version").and_then(Value::as_i64),
            columns: snapshot.columns().into_iter().map(|(name, kind)| (name, json!(kind))).collect(),
            k: options.k,
            retrieval: options.retrieval,
            colbert: snapshot.late.as_ref().and(service.colbert.as_ref()).map(|model| model.name.clone()),
            hybrid: options.hybrid,
            expand: options.expand,
            min_similarity: service.min_similarity,
        }
    });
    Ok(HttpResponse::Ok().json(Info {
        version: env!("CARGO_PKG_VERSION"),
        uptime: app.started.elapsed().as_secs(),
        reranker: service.reranker.as_ref().map(|reranks| reranks.name.clone()),
        colbert: service.indexes.as_ref().map(|indexes| indexes.model().to_owned()),
        embedder: EmbedderInfo { name: embedder.name.clone(), dim: embedder.dim, max_tokens: embedder.max_tokens },
        generator: service.generator.as_ref().map(|writes| GeneratorInfo {
            name: writes.name.clone(),
            context: writes.model.context(),
            max_tokens: options.max_tokens,
            slots: options.slots,
        }),
        library,
        page: PageInfo {
            title: options.title.clone(),
            greeting: options.greeting.clone(),
            examples: options.examples.clone(),
        },
    }))
}

/// Returns counts and times in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "status", responses(
    (status = 200, description = "Counts and times", body = String, content_type = "application/openmetrics-text"),
    (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
))]
pub(super) async fn metrics(app: Data<App>) -> Response<HttpResponse> {
    let text = app.metrics.text(&app).map_err(|_| Problem::stopping())?;
    let kind = (CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(HttpResponse::Ok().insert_header(kind).body(text))
}

/// Returns this description.
#[utoipa::path(get, path = "/openapi.json", tag = "status", responses(
    (status = 200, description = "The description in OpenAPI 3.1", body = Object),
    (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
))]
pub(super) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().json(openapi::document())
}

/// A model that is served.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelInfo {
    id: String,
    /// `model`.
    object: &'static str,
    /// When the service was started, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
}

/// The models that are served.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: &'static str,
    data: Vec<ModelInfo>,
}

fn known(app: &App) -> Result<Vec<ModelInfo>, Problem> {
    let service = app.service()?;
    let created = super::now().saturating_sub(app.started.elapsed().as_secs());
    let writes = service.generator.iter().map(|writes| writes.name.clone());
    let ids = writes.chain([service.embedder.name.clone()]);
    Ok(ids.map(|id| ModelInfo { id, object: "model", created, owned_by: "adventures" }).collect())
}

/// Lists the models that are served.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses(
    (status = 200, description = "The generator, then the embedder", body = ModelList),
    (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
))]
pub(super) async fn models(app: Data<App>) -> Response<HttpResponse> {
    Ok(HttpResponse::Ok().json(ModelList { object: "list", data: known(&app)? }))
}

/// Describes a model.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "openai", params(("model" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The model", body = ModelInfo),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
        (status = "5XX", description = "The service cannot answer now", body = ErrorBody),
    ))]
pub(super) async fn model(app: Data<App>, name: Path<String>) -> Response<HttpResponse> {
    let models = known(&app)?;
    let known: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    let missing = no_model(&name, &known.join(", "));
    let found = models.into_iter().find(|model| names(&name, &model.id)).ok_or(missing)?;
    Ok(HttpResponse::Ok().json(found))
}
