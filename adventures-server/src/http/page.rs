//! The page, compiled in: nothing is read from disk, and nothing comes from elsewhere.

use super::problem::{ErrorBody, Problem};
use super::status::Health;
use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use actix_web::web::Path;
use actix_web::{HttpRequest, HttpResponse, Result as Response};

const INDEX: &str = include_str!("../../page/index.html");
const FAVICON: &str = include_str!("../../page/favicon.svg");

macro_rules! files {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../../page/", $name)))),*] };
}

/// Name and text of each file beside it.
const ASSETS: &[(&str, &str)] = files! {
    "api.js" "app.css" "app.js" "chat.js" "dom.js" "filters.js" "history.js" "markdown.js" "problem.js" "search.js"
    "settings.js" "sources.js" "store.js" "theme.js" "turn.js"
};

/// Returns the page to a browser, and to others that the service runs.
#[utoipa::path(get, path = "/", tag = "page", security(()), responses(
    (status = 200, description = "The page; `adventures is running` as text, or its status as JSON, where that is asked for",
        body = String, content_type = "text/html"),
))]
pub(super) async fn root(request: HttpRequest) -> HttpResponse {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let mut response = HttpResponse::Ok();
    response.insert_header((VARY, "accept")).insert_header((CACHE_CONTROL, "no-cache"));
    if accept.contains("text/html") {
        response.insert_header((CONTENT_TYPE, "text/html; charset=utf-8")).body(INDEX)
    } else if accept.contains("application/json") {
        response.json(Health { status: "ok" })
    } else {
        response.insert_header((CONTENT_TYPE, "text/plain; charset=utf-8")).body("adventures is running\n")
    }
}

/// Returns a file of the page.
#[utoipa::path(get, path = "/page/{name}", tag = "page", security(()), params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The file", body = String, content_type = "text/javascript"),
        (status = 404, description = "There is none of that name", body = ErrorBody),
    ))]
pub(super) async fn asset(name: Path<String>) -> Response<HttpResponse> {
    let found = ASSETS.iter().find(|(known, _)| *known == name.as_str());
    let Some((known, text)) = found else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", "the page has no such file").into());
    };
    let kind = match known.rsplit_once('.') {
        Some((_, "css")) => "text/css; charset=utf-8",
        _ => "text/javascript; charset=utf-8",
    };
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, kind)).insert_header((CACHE_CONTROL, "no-cache")).body(*text))
}

/// Returns the page's icon.
#[utoipa::path(get, path = "/favicon.ico", tag = "page", security(()), responses(
    (status = 200, description = "The icon", body = String, content_type = "image/svg+xml"),
))]
pub(super) async fn favicon() -> HttpResponse {
    HttpResponse::Ok().insert_header((CONTENT_TYPE, "image/svg+xml")).body(FAVICON)
}
