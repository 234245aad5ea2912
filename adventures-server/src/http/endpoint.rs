//! The table of all routes. One that is not in it does not exist, and one without a line in `access` does not compile.

use super::{chat, completions, embeddings, page, rerank, search, seed, status};
use actix_web::http::Method;
use actix_web::web::{self, ServiceConfig};
use actix_web::{Route, guard};

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody who reaches the service: it tells nothing of models, library or clients.
    Open,
    /// Who has a key, where there are keys.
    Key,
}

macro_rules! endpoints {
    ($($name:ident $method:ident $path:literal),* $(,)?) => {
        /// A route.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "named by method and path below")]
        pub enum Endpoint { $($name),* }

        impl Endpoint {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its method.
            pub fn method(self) -> Method {
                match self { $(Self::$name => Method::$method),* }
            }

            /// Its pattern.
            pub fn path(self) -> &'static str {
                match self { $(Self::$name => $path),* }
            }
        }
    };
}

endpoints! {
    Root GET "/",
    Asset GET "/page/{name}",
    Favicon GET "/favicon.ico",
    Health GET "/health",
    Ready GET "/ready",
    Info GET "/info",
    Metrics GET "/metrics",
    OpenApi GET "/openapi.json",
    Models GET "/v1/models",
    Model GET "/v1/models/{model:.+}",
    ChatCompletions POST "/v1/chat/completions",
    Completions POST "/v1/completions",
    EmbeddingsV1 POST "/v1/embeddings",
    Search POST "/v1/search",
    Rerank POST "/v1/rerank",
    Chat POST "/chat",
    Embeddings POST "/embeddings",
    Embed POST "/embed",
    Query POST "/query",
}

impl Endpoint {
    /// Who may call it.
    pub fn access(self) -> Access {
        match self {
            Self::Root | Self::Asset | Self::Favicon | Self::Health | Self::Ready => Access::Open,
            Self::Info
            | Self::Metrics
            | Self::OpenApi
            | Self::Models
            | Self::Model
            | Self::ChatCompletions
            | Self::Completions
            | Self::EmbeddingsV1
            | Self::Search
            | Self::Rerank
            | Self::Chat
            | Self::Embeddings
            | Self::Embed
            | Self::Query => Access::Key,
        }
    }

    fn route(self) -> Route {
        let route = match self.method() {
            // The same without the body, which the connection leaves out.
            Method::GET => web::route().guard(guard::Any(guard::Get()).or(guard::Head())),
            method => web::method(method),
        };
        match self {
            Self::Root => route.to(page::root),
            Self::Asset => route.to(page::asset),
            Self::Favicon => route.to(page::favicon),
            Self::Health => route.to(status::health),
            Self::Ready => route.to(status::ready),
            Self::Info => route.to(status::info),
            Self::Metrics => route.to(status::metrics),
            Self::OpenApi => route.to(status::openapi),
            Self::Models => route.to(status::models),
            Self::Model => route.to(status::model),
            Self::ChatCompletions => route.to(chat::completions),
            Self::Completions => route.to(completions::completions),
            Self::EmbeddingsV1 | Self::Embeddings => route.to(embeddings::embeddings),
            Self::Search | Self::Query => route.to(search::search),
            Self::Rerank => route.to(rerank::rerank),
            Self::Chat => route.to(seed::chat),
            Self::Embed => route.to(seed::embed),
        }
    }

    /// The route with this pattern.
    pub fn find(pattern: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|endpoint| endpoint.path() == pattern)
    }
}

/// Adds all routes to an application.
pub fn configure(config: &mut ServiceConfig) {
    for endpoint in Endpoint::ALL {
        config.service(web::resource(endpoint.path()).route(endpoint.route()));
    }
}
