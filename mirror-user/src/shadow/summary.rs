//! What the agent tells the node: `GET /v1/summary` on `api`, with `Authorization: Bearer TOKEN`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

/// All services of an agent, since its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// When the agent started: another value = its figures began anew.
    pub since: jiff::Timestamp,
    /// When this was said.
    pub time: jiff::Timestamp,
    /// Its services.
    pub services: Vec<ServiceSummary>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its name.
    pub name: String,
    /// Its id, the tunnel's VNI.
    pub id: u32,
    /// The shadow's version.
    pub version: String,
    /// Requests that were seen.
    pub seen: u64,
    /// Those that were compared.
    pub compared: u64,
    /// Those that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Comparisons of stable's answers, by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Comparisons of the canary's answers, by verdict.
    #[serde(default)]
    pub canary_verdicts: BTreeMap<String, u64>,
    /// From the request's last byte to the answer's first, by production's stable version.
    pub production: Latency,
    /// The same of the shadow.
    pub shadow: Latency,
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many there are.
    pub count: u64,
    /// Their sum, in seconds.
    pub sum_seconds: f64,
    /// Upper bound in seconds, and how many are not above it.
    pub buckets: Vec<(f64, u64)>,
}

struct Api<F> {
    token: [u8; 32],
    summary: F,
}

/// Serves until it is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    token: &str,
    summary: impl Fn() -> Summary + Send + Sync + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(token, summary)).await
}

fn router<F: Fn() -> Summary + Send + Sync + 'static>(token: &str, summary: F) -> Router {
    let token = Sha256::digest(token).into();
    Router::new()
        .route("/v1/summary", get(say::<F>))
        .with_state(Arc::new(Api { token, summary }))
}

async fn say<F: Fn() -> Summary>(State(api): State<Arc<Api<F>>>, headers: HeaderMap) -> Response {
    if is_allowed(&headers, &api.token) {
        Json((api.summary)()).into_response()
    } else {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        (StatusCode::UNAUTHORIZED, challenge).into_response()
    }
}

/// Compares digests, and all of them: how long it takes says nothing of the token.
fn is_allowed(headers: &HeaderMap, token: &[u8; 32]) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    let Some((scheme, given)) = given.and_then(|value| value.split_at_checked(7)) else {
        return false;
    };
    let given = Sha256::digest(given);
    let different = given.iter().zip(token).fold(0, |sum, (a, b)| sum | (a ^ b));
    scheme.eq_ignore_ascii_case(b"bearer ") && different == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::Service as _;

    fn summary() -> Summary {
        Summary {
            since: jiff::Timestamp::UNIX_EPOCH,
            time: jiff::Timestamp::UNIX_EPOCH,
            services: Vec::new(),
        }
    }

    async fn ask(authorization: Option<&str>) -> (StatusCode, Vec<u8>) {
        let mut request = Request::get("/v1/summary");
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = router("secret", summary).call(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap();
        (status, body.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn only_who_has_the_token_is_answered() {
        for wrong in [
            None,
            Some("Bearer"),
            Some("Bearer "),
            Some("Bearer secre"),
            Some("Bearer secret2"),
            Some("Basic secret"),
        ] {
            let (status, body) = ask(wrong).await;
            assert_eq!(
                (status, body.len()),
                (StatusCode::UNAUTHORIZED, 0),
                "{wrong:?}"
            );
        }
        let (status, body) = ask(Some("bearer secret")).await;
        assert_eq!(status, StatusCode::OK);
        let said: Summary = serde_json::from_slice(&body).unwrap();
        assert_eq!(said, summary());
    }
}
