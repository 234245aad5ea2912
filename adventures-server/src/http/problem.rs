//! What went wrong, as OpenAI's clients read it.

use actix_web::http::StatusCode;
use actix_web::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use adventures::Error;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;
use utoipa::ToSchema;

/// An error response.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
}

/// The body of an error response.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What went wrong.
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// For people.
    message: String,
    /// The class of the error, as OpenAI names it.
    r#type: &'static str,
    /// Which field of the request is wrong, where one is.
    param: Option<String>,
    /// For programs.
    code: &'static str,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// A request that is not what it should be.
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        let param = Some(param.to_owned());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// No room now.
    pub(super) fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        let retry_after = Some(retry_after);
        Self { retry_after, ..Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message) }
    }

    pub(super) fn not_ready() -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self {
            retry_after,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading", "models and library are being loaded")
        }
    }

    pub(super) fn deadline() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", "the request took too long")
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the service is stopping")
    }

    pub(super) fn body(&self) -> ErrorBody {
        let r#type = match self.status.as_u16() {
            401 => "authentication_error",
            403 | 421 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        ErrorBody {
            error: ErrorDetail { message: self.message.clone(), r#type, param: self.param.clone(), code: self.code },
        }
    }

    pub(super) fn json(&self) -> Value {
        json!(self.body())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_value"),
            Error::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Error::Unsupported(_) => (StatusCode::UNPROCESSABLE_ENTITY, "unsupported"),
            Error::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        let retry_after = matches!(error, Error::Busy(_)).then(|| Duration::from_secs(1));
        Self { retry_after, ..Self::new(status, code, error.to_string()) }
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(after) = self.retry_after {
            response.insert_header((RETRY_AFTER, after.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header((WWW_AUTHENTICATE, "Bearer"));
        }
        response.json(self.body())
    }
}
