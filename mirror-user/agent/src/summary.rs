//! How the agent answers who asks for its summary. Who may ask has been settled before, by keys.

use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mirror_api::summary::Summary;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long somebody who has connected may take to say what for, and between two questions.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers with what `summary` says; nothing = the agent stops.
pub fn router(summary: impl Fn() -> Option<Summary> + Clone + Send + Sync + 'static) -> Router {
    let say = async move || summary().map(Json).ok_or(StatusCode::SERVICE_UNAVAILABLE);
    Router::new().route("/v1/summary", get(say))
}

/// Serves one connection until the other side closes it, or is silent for half a minute.
///
/// # Errors
/// When it breaks off, or is no HTTP/1.
pub async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::Service as _;

    use super::*;

    fn summary() -> Summary {
        Summary {
            since: jiff::Timestamp::UNIX_EPOCH,
            time: jiff::Timestamp::UNIX_EPOCH,
            services: Vec::new(),
        }
    }

    async fn ask(path: &str, says: Option<Summary>) -> (StatusCode, Vec<u8>) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(move || says.clone()).call(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap();
        (status, body.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn the_summary_is_there_while_the_agent_works() {
        let (status, body) = ask("/v1/summary", Some(summary())).await;
        assert_eq!(status, StatusCode::OK);
        let said: Summary = serde_json::from_slice(&body).unwrap();
        assert_eq!(said, summary());
        let (status, _) = ask("/v1/summary", None).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let (status, _) = ask("/", Some(summary())).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
}
