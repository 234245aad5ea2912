//! What every request passes before a route sees it: the host it names, its key, how its body is packed.

use super::App;
use super::endpoint::{Access, Endpoint};
use super::keys::Client;
use super::problem::Problem;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HOST, HeaderMap, HeaderName, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, ResponseError, web};
use std::net::IpAddr;
use std::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

/// Nothing from elsewhere, nothing inline, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Checks a request, answers it, and writes down that it did.
pub(super) async fn guard<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let began = Instant::now();
    let id = Uuid::new_v4();
    let app = request.app_data::<web::Data<App>>().expect("the application has its state; this is a bug").clone();
    let pattern = request.match_pattern();
    let endpoint = pattern.as_deref().and_then(Endpoint::find);
    let method = request.method().clone();
    let route = pattern.filter(|_| endpoint.is_some()).unwrap_or_else(|| "none".into());
    let (client, admitted) = match admit(&app, request.headers(), endpoint) {
        Ok(client) => (client.name().to_string(), Ok(client)),
        Err(problem) => (String::new(), Err(problem)),
    };
    let mut response = match admitted {
        Ok(client) => {
            request.extensions_mut().insert(client);
            let span = tracing::info_span!("request", id = %id, %method, route);
            next.call(request).instrument(span).await?.map_into_left_body()
        }
        Err(problem) => request.into_response(problem.error_response()).map_into_right_body(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    let (status, seconds) = (response.status().as_u16(), began.elapsed().as_secs_f64());
    app.metrics.answered(&route, status, seconds);
    // No path, no query and no body: they may hold what somebody asked.
    tracing::info!(request = %id, %method, route, status, milliseconds = (seconds * 1e4).round() / 10.0, client, "request");
    Ok(response)
}

fn admit(app: &App, headers: &HeaderMap, endpoint: Option<Endpoint>) -> Result<Client, Problem> {
    check_host(app, headers)?;
    let open = endpoint.is_some_and(|endpoint| endpoint.access() == Access::Open);
    let client = if open || app.keys.is_empty() {
        Client::anyone()
    } else {
        app.keys.admit(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes))?
    };
    let packed = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).any(packed) {
        let message = "a body is to be sent as it is, without Content-Encoding";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message));
    }
    Ok(client)
}

/// A page elsewhere may make its own name point here (DNS rebinding); the name that it calls us by gives it away.
fn check_host(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST);
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().unwrap_or_default(),
        _ => return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_host", "a request names one Host")),
    };
    if is_ours(host, app.options.host, &app.options.allow_host) {
        return Ok(());
    }
    let shown: String = host.chars().take(100).collect();
    let message = format!("this service is not {shown:?}; the setting allow-host lists names for it");
    Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", message))
}

fn is_ours(host: &str, bound: IpAddr, allowed: &[String]) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None => return false,
        },
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    if port.is_some_and(|port| port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if name.eq_ignore_ascii_case("localhost") || allowed.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        return true;
    }
    match name.parse::<IpAddr>() {
        // No name is looked up for an address, so nobody else can own it.
        Ok(address) => address == bound || address.is_loopback() || !bound.is_loopback(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        let allowed = ["chat.example.org".to_owned()];
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let ours =
            ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8080", "chat.example.org:443"];
        for host in ours {
            assert!(is_ours(host, loopback, &allowed), "{host}");
        }
        let others = [
            "",
            "evil.com",
            "localhost.evil.com",
            "127.0.0.1.nip.io",
            "localhost:",
            "localhost:80:80",
            "localhost:8080a",
            "[::1",
            "[::1]x",
            "[::ffff:10.0.0.1]",
            "10.0.0.1",
            "0.0.0.0",
            "192.168.0.1:8080",
            "localhost@evil.com",
            "evil.com#localhost",
            "localhost/evil",
            "2130706433",
            "0x7f.1",
            "chat.example.org.evil",
            "xchat.example.org",
            "local\u{a0}host",
            "localhost ",
            " localhost",
            "localhost.",
            "127.1",
            "[fe80::1%lo]",
            "*",
        ];
        for host in others {
            assert!(!is_ours(host, loopback, &allowed), "{host}");
        }
        let open = IpAddr::from([0, 0, 0, 0]);
        assert!(is_ours("10.1.2.3:8080", open, &allowed));
        assert!(!is_ours("evil.com", open, &allowed));
    }
}
