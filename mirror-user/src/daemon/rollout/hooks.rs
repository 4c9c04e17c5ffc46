//! Calls a hook: a POST with JSON, and what came of it.

use jiff::Timestamp;
use reqwest::{Client, StatusCode, header};
use serde::Serialize;

use super::http;
use crate::config::Share;
use crate::rollout::plan::{Hook, HookPoint};

/// As much of an answer as is read.
const LARGEST_ANSWER: usize = 4096;

/// What a hook is told; docs/pipelines.md describes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Notice<'a> {
    /// Why it is called.
    pub event: HookPoint,
    /// The service's name.
    pub service: &'a str,
    /// The rollout's id.
    pub rollout: &'a str,
    /// The version in production.
    pub stable_version: &'a str,
    /// The version on trial.
    pub canary_version: &'a str,
    /// The stage that has ended; nothing before the first.
    pub stage: Option<Stage>,
    /// Why, on a rollback.
    pub reason: Option<String>,
    /// When.
    pub time: Timestamp,
}

/// A stage by what clients see of it: `"shadow"`, or the canary's share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Nothing.
    Shadow,
    /// A share of new connections.
    #[serde(untagged)]
    Share(Share),
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A 200 from a hook that approves.
    Approved,
    /// A 2xx from one that is only told.
    Done(StatusCode),
    /// Anything else: from one that approves, not yet.
    Refused(StatusCode, String),
    /// No answer, and why.
    Failed(String),
}

/// Calls `hook` once, within its timeout. Redirects are answers, not followed.
pub(super) async fn call(client: &Client, hook: &Hook, body: &impl Serialize) -> Outcome {
    match ask(client, hook, body).await {
        Ok((StatusCode::OK, _)) if hook.approve => Outcome::Approved,
        Ok((status, _)) if status.is_success() && !hook.approve => Outcome::Done(status),
        Ok((status, said)) => Outcome::Refused(status, said),
        Err(why) => Outcome::Failed(why),
    }
}

/// The status, and how the answer begins.
async fn ask(
    client: &Client,
    hook: &Hook,
    body: &impl Serialize,
) -> Result<(StatusCode, String), String> {
    let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
    let why = |error: reqwest::Error| {
        if error.is_timeout() {
            let time = humantime::format_duration(hook.timeout);
            return format!("no answer within {time}");
        }
        http::innermost(&error)
    };
    let request = client
        .post(&hook.url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .timeout(hook.timeout);
    let response = request.send().await.map_err(why)?;
    let status = response.status();
    if let Some(place) = response.headers().get(header::LOCATION) {
        let place = String::from_utf8_lossy(place.as_bytes());
        return Ok((status, http::beginning(&format!("redirects to {place}"))));
    }
    let text = http::text(response, LARGEST_ANSWER).await.map_err(why)?;
    Ok((status, http::beginning(&text)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::post;
    use tokio::net::TcpListener;

    use super::*;

    async fn serve() -> String {
        let answer =
            |status: StatusCode, body: &'static str| post(move || async move { (status, body) });
        let echo = |body: String| async move { (StatusCode::CONFLICT, body) };
        let router = Router::new()
            .route("/ok", answer(StatusCode::OK, "fine"))
            .route("/accepted", answer(StatusCode::ACCEPTED, ""))
            .route(
                "/forbidden",
                answer(StatusCode::FORBIDDEN, "not\n  on a Friday"),
            )
            .route(
                "/broken",
                post(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "x".repeat(100_000)) }),
            )
            .route("/moved", post(|| async { Redirect::temporary("/ok") }))
            .route("/hang", post(std::future::pending::<()>))
            .route("/echo", post(echo));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        base
    }

    async fn called(base: &str, path: &str, approve: bool) -> Outcome {
        called_within(Duration::from_secs(5), base, path, approve).await
    }

    async fn called_within(timeout: Duration, base: &str, path: &str, approve: bool) -> Outcome {
        let hook = Hook {
            on: HookPoint::Stage,
            url: format!("{base}{path}"),
            approve,
            timeout,
        };
        let notice = Notice {
            event: hook.on,
            service: "sentiment",
            rollout: "r-1",
            stable_version: "v12",
            canary_version: "v13",
            stage: Some(Stage::Share(Share::try_from(0.05).unwrap())),
            reason: None,
            time: Timestamp::UNIX_EPOCH,
        };
        call(&http::client().unwrap(), &hook, &notice).await
    }

    fn refused(status: StatusCode, said: &str) -> Outcome {
        Outcome::Refused(status, said.to_owned())
    }

    #[tokio::test]
    async fn only_a_200_approves() {
        let base = serve().await;
        assert_eq!(called(&base, "/ok", true).await, Outcome::Approved);
        let not_yet = refused(StatusCode::ACCEPTED, "");
        assert_eq!(called(&base, "/accepted", true).await, not_yet);
        let forbidden = refused(StatusCode::FORBIDDEN, "not on a Friday");
        assert_eq!(called(&base, "/forbidden", true).await, forbidden);
    }

    #[tokio::test]
    async fn who_is_told_may_say_any_2xx() {
        let base = serve().await;
        assert_eq!(
            called(&base, "/ok", false).await,
            Outcome::Done(StatusCode::OK)
        );
        let accepted = Outcome::Done(StatusCode::ACCEPTED);
        assert_eq!(called(&base, "/accepted", false).await, accepted);
        let broken = refused(StatusCode::INTERNAL_SERVER_ERROR, &"x".repeat(200));
        assert_eq!(called(&base, "/broken", false).await, broken);
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let moved = refused(StatusCode::TEMPORARY_REDIRECT, "redirects to /ok");
        assert_eq!(called(&serve().await, "/moved", true).await, moved);
    }

    #[tokio::test]
    async fn no_answer_is_a_failure() {
        let base = serve().await;
        let silent = Outcome::Failed("no answer within 50ms".to_owned());
        let patience = Duration::from_millis(50);
        assert_eq!(called_within(patience, &base, "/hang", true).await, silent);
        let refused = Outcome::Failed("Connection refused (os error 111)".to_owned());
        assert_eq!(called("http://127.0.0.1:1", "/", true).await, refused);
    }

    #[tokio::test]
    async fn a_hook_is_told_what_happened() {
        let told = called(&serve().await, "/echo", false).await;
        let said = r#"{"event":"stage","service":"sentiment","rollout":"r-1","stable_version":"v12","canary_version":"v13","stage":0.05,"reason":null,"time":"1970-01-01T00:00:00Z"}"#;
        assert_eq!(told, refused(StatusCode::CONFLICT, said));
        assert_eq!(serde_json::json!(Stage::Shadow), "shadow");
    }
}
