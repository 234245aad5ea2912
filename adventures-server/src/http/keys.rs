//! Who a request is from.

use super::problem::Problem;
use crate::options::Key;
use actix_web::http::StatusCode;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use sha2::{Digest, Sha256};
use std::num::NonZeroU32;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The keys of the service.
pub(super) struct Keys(Vec<Known>);

struct Known {
    client: Client,
    /// Of the secret: digests are of one length, so comparing them tells nothing of it.
    digest: [u8; 32],
    limit: Option<DefaultDirectRateLimiter>,
}

/// Who made a request: the name of its key.
#[derive(Debug, Clone)]
pub(super) struct Client(Arc<str>);

impl Client {
    /// The client of a service without keys.
    pub(super) fn anyone() -> Self {
        Self(Arc::from(""))
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.0
    }
}

impl Keys {
    pub(super) fn new(keys: &[Key]) -> Self {
        let known = |key: &Key| Known {
            client: Client(Arc::from(key.name.as_str())),
            digest: Sha256::digest(&key.secret).into(),
            limit: key.per_minute.and_then(NonZeroU32::new).map(|n| RateLimiter::direct(Quota::per_minute(n))),
        };
        Self(keys.iter().map(known).collect())
    }

    /// Whether there are none, so that everybody may call.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whose key the header `Authorization` holds, and counts the request.
    pub(super) fn admit(&self, header: Option<&[u8]>) -> Result<Client, Problem> {
        let refused = |message: &str| Problem::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
        let Some(header) = header else {
            return Err(refused("this service needs a key: send the header Authorization: Bearer KEY"));
        };
        let scheme = header.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        let secret = header.get(7..).filter(|_| scheme).map(<[u8]>::trim_ascii).unwrap_or_default();
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let mut found = None;
        // All of them, whichever fits.
        for known in &self.0 {
            if bool::from(known.digest.ct_eq(&digest)) {
                found = Some(known);
            }
        }
        let known = found.ok_or_else(|| refused("the key is not known"))?;
        if let Some(limit) = &known.limit
            && let Err(later) = limit.check()
        {
            let wait = later.wait_time_from(DefaultClock::default().now());
            return Err(Problem::busy("this key has made all its requests of this minute", wait));
        }
        Ok(known.client.clone())
    }
}
