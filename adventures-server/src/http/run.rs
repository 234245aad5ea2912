//! From the first request to the last.

use super::endpoint::configure;
use super::problem::Problem;
use super::{App, MAX_BODY, Phase, connection, guard};
use crate::options::Options;
use crate::service::Service;
use actix_cors::Cors;
use actix_web::error::{JsonPayloadError, QueryPayloadError};
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, CONTENT_TYPE};
use actix_web::middleware::{Condition, from_fn};
use actix_web::web::{self, Data, JsonConfig, PayloadConfig, QueryConfig};
use actix_web::{HttpResponse, HttpServer, ResponseError};
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

/// How many connections there may be; more wait outside.
const CONNECTIONS: usize = 2_048;

/// Serves until SIGTERM or Ctrl-C; `runtime` is where models are loaded and libraries searched.
///
/// Fails where the address is taken, and where a model or the library cannot be loaded.
pub async fn serve(options: Options, runtime: Handle) -> Result<()> {
    let (host, port, stall, grace) = (options.host, options.port, options.stall, options.grace);
    let app = Data::new(App::new(options));
    let shared = app.clone();
    let server = HttpServer::new(move || {
        let origins = &shared.options.cors_origin;
        let cors = origins.iter().fold(Cors::default(), |cors, origin| cors.allowed_origin(origin));
        let cors =
            cors.allowed_methods(["GET", "POST", "DELETE"]).allowed_headers([AUTHORIZATION, CONTENT_TYPE]).max_age(600);
        actix_web::App::new()
            .app_data(shared.clone())
            .app_data(PayloadConfig::new(MAX_BODY))
            .app_data(JsonConfig::default().limit(MAX_BODY).error_handler(|error, _| unreadable(&error).into()))
            .app_data(QueryConfig::default().error_handler(|error, _| unasked(&error).into()))
            .wrap(from_fn(guard::guard))
            .wrap(Condition::new(!origins.is_empty(), cors))
            .configure(configure)
            .default_service(web::to(missing))
    });
    let server = server
        .on_connect(move |socket, _| connection::set_up(socket, stall))
        .workers(2)
        .max_connections(CONNECTIONS)
        .backlog(2_048)
        // Who has closed one half will not read the other.
        .h1_allow_half_closed(false)
        .client_request_timeout(Duration::from_secs(5))
        .client_disconnect_timeout(Duration::from_secs(1))
        .disable_signals()
        .shutdown_timeout(2)
        .bind((host, port))
        .with_context(|| format!("cannot listen on {}", SocketAddr::from((host, port))))?;
    for address in server.addrs() {
        tracing::info!(url = format!("http://{address}/"), "listening");
    }
    let server = server.run();
    let handle = server.handle();
    let running = actix_web::rt::spawn(server);
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for Ctrl-C")?;
    let served = async {
        let service = Arc::new(Service::load(&app.options, runtime).await?);
        let _ = app.service.set(Arc::clone(&service));
        tracing::info!(seconds = app.started.elapsed().as_secs_f64(), "ready");
        follow(&service).await
    };
    let outcome = tokio::select! {
        failed = served => failed,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!(grace = grace.as_secs(), "stopping");
    app.phase.send_replace(Phase::Draining);
    // New connections are refused from now on; those that are there may end.
    let stopped = actix_web::rt::spawn({
        let handle = handle.clone();
        async move { handle.pause().await }
    });
    if outcome.is_ok() {
        tokio::select! {
            () = drained(&app) => {}
            () = tokio::time::sleep(grace) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    app.phase.send_replace(Phase::Stopped);
    if let Some(indexes) = app.service.get().and_then(|service| service.indexes.as_ref()) {
        indexes.stop();
    }
    let _ = stopped.await;
    handle.stop(true).await;
    running.await.context("the server's task")?.context("serving")?;
    tracing::info!("stopped");
    outcome
}

/// Returns when nothing runs and nothing waits.
async fn drained(app: &App) {
    let changes = || app.service.get().and_then(|service| service.indexes.as_ref()).map_or(0, |all| all.jobs_left());
    while app.queue.load() != (0, 0) || changes() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Serves each version of the library that is published; never returns.
async fn follow(service: &Service) -> Result<()> {
    let Some(library) = &service.library else { return std::future::pending().await };
    let mut failed = false;
    loop {
        tokio::time::sleep(library.interval()).await;
        match library.follow().await {
            Ok(changed) => {
                failed = false;
                if changed {
                    tracing::info!(version = library.snapshot().version, "serving a new version of the library");
                }
            }
            Err(problem) => {
                if !failed {
                    tracing::warn!("the library cannot be followed: {problem:#}");
                }
                failed = true;
            }
        }
    }
}

async fn missing() -> HttpResponse {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such route").error_response()
}

fn unasked(error: &QueryPayloadError) -> Problem {
    let shown: String = error.to_string().chars().take(300).collect();
    Problem::new(StatusCode::BAD_REQUEST, "invalid_query", format!("what follows the path is not understood: {shown}"))
}

fn unreadable(error: &JsonPayloadError) -> Problem {
    match error {
        JsonPayloadError::OverflowKnownLength { .. } | JsonPayloadError::Overflow { .. } => {
            let message = format!("the body is longer than {MAX_BODY} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_long", message)
        }
        JsonPayloadError::ContentType => {
            let message = "the body is to be JSON, with Content-Type: application/json";
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
        }
        JsonPayloadError::Deserialize(problem) => {
            // It may quote the request, at any length.
            let shown: String = problem.to_string().chars().take(300).collect();
            Problem::new(StatusCode::BAD_REQUEST, "invalid_body", format!("the body is not understood: {shown}"))
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, "invalid_body", "the body could not be read"),
    }
}
