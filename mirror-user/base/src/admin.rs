//! The admin endpoint of both halves: /metrics for Prometheus, /healthz and /readyz for whoever
//! keeps the process running.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::TextEncoder;
use prometheus::proto::MetricFamily;
use tokio::net::TcpListener;

use crate::serve;

/// Whether the process does what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It does not, and why.
    NotReady(String),
}

struct Admin<G, F> {
    gather: G,
    ready: F,
}

/// Serves until it is dropped; `gather` is asked for every scrape.
pub async fn serve(
    listener: TcpListener,
    gather: impl Fn() -> Vec<MetricFamily> + Send + Sync + 'static,
    ready: impl Fn() -> Readiness + Send + Sync + 'static,
) {
    serve::serve(listener, router(gather, ready)).await;
}

fn router<G, F>(gather: G, ready: F) -> Router
where
    G: Fn() -> Vec<MetricFamily> + Send + Sync + 'static,
    F: Fn() -> Readiness + Send + Sync + 'static,
{
    Router::new()
        .route("/metrics", get(metrics::<G, F>))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<G, F>))
        .with_state(Arc::new(Admin { gather, ready }))
}

async fn metrics<G: Fn() -> Vec<MetricFamily>, F>(
    State(admin): State<Arc<Admin<G, F>>>,
) -> Response {
    match TextEncoder::new().encode_to_string(&(admin.gather)()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz<G, F: Fn() -> Readiness>(State(admin): State<Arc<Admin<G, F>>>) -> Response {
    match (admin.ready)() {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::NotReady(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use prometheus::Registry;
    use tower::Service as _;

    async fn ask(ready: Readiness, path: &str) -> (StatusCode, String) {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("tests_total", "Tests.").unwrap();
        registry.register(Box::new(counter)).unwrap();
        let mut router = router(move || registry.gather(), move || ready.clone());
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.call(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn says_how_it_is() {
        let ready = Readiness::Ready;
        let dead = Readiness::NotReady("the capture thread has stopped".into());
        let ok = |text: &str| (StatusCode::OK, text.to_owned());
        assert_eq!(ask(ready.clone(), "/healthz").await, ok("ok\n"));
        assert_eq!(ask(dead.clone(), "/healthz").await, ok("ok\n"));
        assert_eq!(ask(ready.clone(), "/readyz").await, ok("ready\n"));
        let refused = (
            StatusCode::SERVICE_UNAVAILABLE,
            "the capture thread has stopped\n".to_owned(),
        );
        assert_eq!(ask(dead, "/readyz").await, refused);
        let metrics = "# HELP tests_total Tests.\n# TYPE tests_total counter\ntests_total 0\n";
        assert_eq!(ask(ready, "/metrics").await, ok(metrics));
    }
}
