//! Calls a hook: a POST with JSON, and what came of it.

use jiff::Timestamp;
use mirror_rollout::Share;
use mirror_rollout::plan::{Hook, HookPoint};
use reqwest::header::{self, HeaderMap};
use reqwest::{Client, StatusCode};
use serde::Serialize;

use super::{headers, http};

/// What a hook is told; docs/how-to/ci-pipelines.md describes it.
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
    Refused(StatusCode),
    /// No answer, and why.
    Failed(String),
}

/// Calls `hook` once, within its timeout. Redirects are answers, not followed. What it answers with may
/// be a secret, and is not read; nor is its address in what is said of a failure.
pub(super) async fn call(client: &Client, hook: &Hook, body: &impl Serialize) -> Outcome {
    match ask(client, hook, body).await {
        Ok(StatusCode::OK) if hook.approve => Outcome::Approved,
        Ok(status) if status.is_success() && !hook.approve => Outcome::Done(status),
        Ok(status) => Outcome::Refused(status),
        Err(why) => Outcome::Failed(why),
    }
}

async fn ask(client: &Client, hook: &Hook, body: &impl Serialize) -> Result<StatusCode, String> {
    let url = hook
        .url
        .whole()
        .ok_or_else(|| "the file with its address has gone; start the rollout again".to_owned())?;
    let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
    let headers = match &hook.headers_file {
        Some(file) => headers::read(file)?,
        None => HeaderMap::new(),
    };
    let request = client
        .post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .headers(headers)
        .body(body)
        .timeout(hook.timeout);
    let response = request.send().await.map_err(|error| {
        if error.is_timeout() {
            let time = humantime::format_duration(hook.timeout);
            return format!("no answer within {time}");
        }
        http::innermost(&error)
    })?;
    Ok(response.status())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::Router;
    use axum::extract::State;
    use axum::http::HeaderMap;
    use axum::response::Redirect;
    use axum::routing::post;
    use tokio::net::TcpListener;

    use super::*;

    /// What it was told last, with the token that came along.
    type Told = Arc<Mutex<(String, Option<String>)>>;

    async fn note(State(told): State<Told>, headers: HeaderMap, body: String) -> StatusCode {
        let token = headers.get("authorization");
        let token = token.map(|token| token.to_str().unwrap().to_owned());
        *told.lock().unwrap() = (body, token);
        StatusCode::OK
    }

    async fn serve() -> (String, Told) {
        let answer =
            |status: StatusCode, body: &'static str| post(move || async move { (status, body) });
        let told = Told::default();
        let router = Router::new()
            .route("/ok", answer(StatusCode::OK, "hush"))
            .route("/accepted", answer(StatusCode::ACCEPTED, ""))
            .route("/forbidden", answer(StatusCode::FORBIDDEN, "hush"))
            .route(
                "/moved",
                post(|| async { Redirect::temporary("/ok?key=hush") }),
            )
            .route("/hang", post(std::future::pending::<()>))
            .route("/note", post(note))
            .with_state(Arc::clone(&told));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (base, told)
    }

    fn hook(url: &str, approve: bool) -> Hook {
        Hook {
            on: HookPoint::Stage,
            url: url.into(),
            headers_file: None,
            approve,
            timeout: Duration::from_secs(5),
        }
    }

    async fn call(hook: &Hook) -> Outcome {
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
        super::call(&http::client().unwrap(), hook, &notice).await
    }

    #[tokio::test]
    async fn only_a_200_approves() {
        let (base, _) = serve().await;
        let check = async |path: &str, approve, expected| {
            let outcome = call(&hook(&format!("{base}{path}"), approve)).await;
            assert_eq!(outcome, expected, "{path}");
        };
        check("/ok", true, Outcome::Approved).await;
        check("/accepted", true, Outcome::Refused(StatusCode::ACCEPTED)).await;
        check("/forbidden", true, Outcome::Refused(StatusCode::FORBIDDEN)).await;
        let moved = Outcome::Refused(StatusCode::TEMPORARY_REDIRECT);
        check("/moved", true, moved).await;
        // Who is told may say any 2xx.
        check("/ok", false, Outcome::Done(StatusCode::OK)).await;
        check("/accepted", false, Outcome::Done(StatusCode::ACCEPTED)).await;
        check("/forbidden", false, Outcome::Refused(StatusCode::FORBIDDEN)).await;
    }

    /// Neither the address nor the token is in what is said of a failure.
    #[tokio::test]
    async fn no_answer_is_a_failure() {
        let (base, _) = serve().await;
        let check = async |hook: &Hook, words: &str| {
            let Outcome::Failed(why) = call(hook).await else {
                panic!("{hook:?} answers");
            };
            assert!(why.contains(words) && !why.contains("hush"), "{why}");
        };
        let hang = Hook {
            timeout: Duration::from_millis(50),
            ..hook(&format!("{base}/hang?key=hush"), true)
        };
        check(&hang, "no answer within 50ms").await;
        for (url, words) in [
            ("http://me:hush@127.0.0.1:1/hush", "Connection refused"),
            ("http://127.0.0.1:99999/hush", "port"),
            ("http://hush", "look"),
            ("http://[hush]/hush", ""),
            ("https://127.0.0.1:1/hush?hush#hush", "refused"),
            ("http://127.0.0.1:1/…", "has gone"),
        ] {
            // Its name is who is called, and no secret.
            check(
                &hook(&url.replace("http://hush", "http://none.invalid"), true),
                words,
            )
            .await;
        }
        let unread = Hook {
            headers_file: Some(PathBuf::from("/none")),
            ..hook(&format!("{base}/ok"), true)
        };
        check(&unread, "headers_file /none").await;
    }

    #[tokio::test]
    async fn a_hook_is_told_what_happened() {
        let (base, told) = serve().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("headers");
        let token = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(Path::new(&file), mode).unwrap();
        };
        let hook = Hook {
            headers_file: Some(file.clone()),
            ..hook(&format!("{base}/note"), true)
        };
        let said = r#"{"event":"stage","service":"sentiment","rollout":"r-1","stable_version":"v12","canary_version":"v13","stage":0.05,"reason":null,"time":"1970-01-01T00:00:00Z"}"#;
        // The file is read anew for each call.
        for header in ["Bearer one-one-one-one-one", "Bearer two-two-two-two-two"] {
            token(&format!("Authorization: {header}\n"));
            assert_eq!(call(&hook).await, Outcome::Approved);
            let told = told.lock().unwrap().clone();
            assert_eq!(told, (said.to_owned(), Some(header.to_owned())));
        }
        assert_eq!(serde_json::json!(Stage::Shadow), "shadow");
    }
}
