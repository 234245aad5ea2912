//! The description of all routes.

use super::{chat, completions, embeddings, indexes, page, rerank, search, seed, status};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, path::PathItem};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(title = "adventures", description = "Cited chat from a library, on your own machines."),
    paths(
        page::root, page::asset, page::favicon, status::health, status::ready, status::info, status::metrics,
        status::openapi, status::models, status::model, chat::completions, completions::completions,
        embeddings::embeddings, search::search, rerank::rerank, seed::chat, seed::embed,
        indexes::create, indexes::query, indexes::list, indexes::describe, indexes::drop_index, indexes::add,
        indexes::delete, indexes::jobs, indexes::job,
    ),
    modifiers(&Keys),
)]
struct Api;

/// All routes need a key, where there are keys, but those that say otherwise.
struct Keys;

impl Modify for Keys {
    fn modify(&self, api: &mut Document) {
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        api.components.get_or_insert_default().add_security_scheme("key", bearer);
        api.security = Some(vec![SecurityRequirement::new("key", [] as [&str; 0])]);
    }
}

/// Returns the description of all routes, in OpenAPI 3.1.
pub fn document() -> Document {
    let mut api = Api::openapi();
    // One route has a second name.
    let (name, also) = ("/v1/embeddings", "/embeddings");
    if let Some(mut item) = api.paths.paths.get(name).cloned() {
        rename(&mut item, also);
        api.paths.paths.insert(also.into(), item);
    }
    api
}

fn rename(item: &mut PathItem, path: &str) {
    if let Some(operation) = &mut item.post {
        operation.operation_id = Some(path.trim_start_matches('/').to_owned());
        operation.tags = Some(vec!["prototype".into()]);
    }
}
