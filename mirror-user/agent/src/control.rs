//! The agent's end of its control socket.

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use mirror_api::shadow::{AgentStatus, PATH};

/// Answers with what `status` says; nothing = the agent stops.
pub fn router(status: impl Fn() -> Option<AgentStatus> + Clone + Send + Sync + 'static) -> Router {
    let say = async move || status().map(Json).ok_or(StatusCode::SERVICE_UNAVAILABLE);
    let unknown = || async {
        let error = "this is a shadow agent, which has /v1/shadow alone";
        (
            StatusCode::NOT_FOUND,
            Json(serde_json::json!({"error": error})),
        )
    };
    Router::new().route(PATH, get(say)).fallback(unknown)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use mirror_api::fixtures::agent_status;
    use tower::Service as _;

    use super::*;

    #[tokio::test]
    async fn it_is_there_while_the_agent_works() {
        let ask = async |path: &str, says: Option<AgentStatus>| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router(move || says.clone())
                .call(request)
                .await
                .unwrap()
                .status()
        };
        assert_eq!(ask(PATH, Some(agent_status())).await, StatusCode::OK);
        assert_eq!(ask(PATH, None).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            ask("/v1/status", Some(agent_status())).await,
            StatusCode::NOT_FOUND
        );
    }
}
