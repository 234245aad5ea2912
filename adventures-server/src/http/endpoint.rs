//! The table of all routes. One that is not in it does not exist, and one without a line in `access` does not compile.

use super::{chat, completions, embeddings, indexes, page, rerank, search, seed, status};
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
    CreateIndex POST "/create_index",
    Query POST "/query",
    Indexes GET "/indexes",
    Index GET "/indexes/{index_name}",
    DropIndex DELETE "/indexes/{index_name}",
    AddDocuments POST "/indexes/{index_name}/documents",
    DeleteDocuments POST "/indexes/{index_name}/delete",
    Jobs GET "/jobs",
    Job GET "/jobs/{id}",
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
            | Self::CreateIndex
            | Self::Query
            | Self::Indexes
            | Self::Index
            | Self::DropIndex
            | Self::AddDocuments
            | Self::DeleteDocuments
            | Self::Jobs
            | Self::Job => Access::Key,
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
            Self::Search => route.to(search::search),
            Self::Rerank => route.to(rerank::rerank),
            Self::Chat => route.to(seed::chat),
            Self::Embed => route.to(seed::embed),
            Self::CreateIndex => route.to(indexes::create),
            Self::Query => route.to(indexes::query),
            Self::Indexes => route.to(indexes::list),
            Self::Index => route.to(indexes::describe),
            Self::DropIndex => route.to(indexes::drop_index),
            Self::AddDocuments => route.to(indexes::add),
            Self::DeleteDocuments => route.to(indexes::delete),
            Self::Jobs => route.to(indexes::jobs),
            Self::Job => route.to(indexes::job),
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
        if Endpoint::find(endpoint.path()) == Some(*endpoint) {
            let of_path = Endpoint::ALL.iter().filter(|other| other.path() == endpoint.path());
            config
                .service(of_path.fold(web::resource(endpoint.path()), |resource, other| resource.route(other.route())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_open_or_not_whatever_the_method() {
        // Who may come in is looked up by the path alone.
        for endpoint in Endpoint::ALL {
            assert_eq!(Endpoint::find(endpoint.path()).map(Endpoint::access), Some(endpoint.access()), "{endpoint:?}");
        }
    }
}
