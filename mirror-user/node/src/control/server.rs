//! The daemon's end of the control socket.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path as Segment, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use mirror_base::serve::{self, Caller};

use super::{Change, Command, Refusal, Reply, Request, RolloutOrder};
use mirror_base::control::ErrorBody;

/// How long the daemon's loop may take for one command.
const PATIENCE: Duration = Duration::from_secs(10);

/// A plan may hold a whole answer of a model.
const LARGEST_ORDER: usize = 4 << 20;

/// Hands commands to the daemon's loop and its answers back, until the future is dropped.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    serve::serve(listener, router(requests)).await;
}

fn router(requests: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services/{name}/mirror", post(mirror))
        .route("/v1/services/{name}/canary", post(canary))
        .route(
            "/v1/services/{name}/rollout",
            post(rollout).layer(DefaultBodyLimit::max(LARGEST_ORDER)),
        )
        .route("/v1/services/{name}/rollout/record", get(rollout_record))
        .route("/v1/rollouts", get(rollouts))
        .route("/v1/off", post(off))
        .fallback(|| async {
            failure(
                StatusCode::NOT_FOUND,
                "no such path; see docs/reference/control-api.md",
            )
        })
        .layer(DefaultBodyLimit::max(4096))
        .with_state(requests)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusQuery {
    service: Option<String>,
}

async fn status(
    State(requests): State<mpsc::Sender<Request>>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Response {
    ask_with(&requests, query, |query| Command::Status {
        service: query.service,
    })
    .await
}

async fn mirror(
    State(requests): State<mpsc::Sender<Request>>,
    caller: Option<Extension<Caller>>,
    Segment(service): Segment<String>,
    body: Bytes,
) -> Response {
    let change = match serde_json::from_slice(&body) {
        Ok(change) => change,
        Err(error) => {
            let known = "\"on\", \"off\", \"clear\" or {\"sample\": 0.25}";
            let said = format!("the body is not a change ({error}): send {known}");
            return failure(StatusCode::UNPROCESSABLE_ENTITY, said);
        }
    };
    if let Change::Sample(share) = change
        && !(0.0..=1.0).contains(&share)
    {
        let said = format!("{share} is not a share: write a number from 0 to 1");
        return failure(StatusCode::UNPROCESSABLE_ENTITY, said);
    }
    ask_as(&requests, caller, Command::Mirror { service, change }).await
}

async fn canary(
    State(requests): State<mpsc::Sender<Request>>,
    caller: Option<Extension<Caller>>,
    Segment(service): Segment<String>,
    body: Bytes,
) -> Response {
    match serde_json::from_slice(&body) {
        Ok(change) => ask_as(&requests, caller, Command::Canary { service, change }).await,
        Err(error) => {
            let known = "{\"share\": 0.05}, {\"off\": \"finish\"}, {\"off\": \"reset\"}, {\"off\": {\"drain\": 30000}}, {\"force_off\": \"finish\"} or \"clear\"";
            let said = format!("the body is not a change ({error}): send {known}");
            failure(StatusCode::UNPROCESSABLE_ENTITY, said)
        }
    }
}

async fn rollout(
    State(requests): State<mpsc::Sender<Request>>,
    Segment(service): Segment<String>,
    body: Bytes,
) -> Response {
    let order: RolloutOrder = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => {
            let known = "{\"start\": {\"who\": NAME}}, or dry_run, pause, resume, promote, abort, finish likewise";
            let said = format!("the body is not an order ({error}): send {known}");
            return failure(StatusCode::UNPROCESSABLE_ENTITY, said);
        }
    };
    if let Err(said) = order.by().bounded() {
        return failure(StatusCode::UNPROCESSABLE_ENTITY, said);
    }
    if let RolloutOrder::Start(start) | RolloutOrder::DryRun(start) = &order
        && let Some(unsound) = start.plan.as_ref().and_then(|plan| plan.unsound().pop())
    {
        let said = format!("the plan cannot be carried out: {unsound}");
        return failure(StatusCode::UNPROCESSABLE_ENTITY, said);
    }
    ask(&requests, Command::Rollout { service, order }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordQuery {
    id: Option<String>,
}

async fn rollout_record(
    State(requests): State<mpsc::Sender<Request>>,
    Segment(service): Segment<String>,
    query: Result<Query<RecordQuery>, QueryRejection>,
) -> Response {
    ask_with(&requests, query, |query| Command::RolloutRecord {
        service,
        id: query.id,
    })
    .await
}

async fn rollouts(
    State(requests): State<mpsc::Sender<Request>>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Response {
    ask_with(&requests, query, |query| Command::Rollouts {
        service: query.service,
    })
    .await
}

async fn off(
    State(requests): State<mpsc::Sender<Request>>,
    caller: Option<Extension<Caller>>,
) -> Response {
    ask_as(&requests, caller, Command::Off).await
}

/// Asks what a query string says.
async fn ask_with<Q>(
    requests: &mpsc::Sender<Request>,
    query: Result<Query<Q>, QueryRejection>,
    command: impl FnOnce(Q) -> Command,
) -> Response {
    match query {
        Ok(Query(query)) => ask(requests, command(query)).await,
        Err(error) => failure(StatusCode::BAD_REQUEST, error.body_text()),
    }
}

async fn ask(requests: &mpsc::Sender<Request>, command: Command) -> Response {
    ask_as(requests, None, command).await
}

async fn ask_as(
    requests: &mpsc::Sender<Request>,
    caller: Option<Extension<Caller>>,
    command: Command,
) -> Response {
    let caller = caller.map_or_else(Caller::default, |Extension(caller)| caller);
    let (reply, answer) = oneshot::channel();
    let asked = async {
        let request = Request {
            command,
            caller,
            reply,
        };
        requests.send(request).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(Ok(Reply::Status(status)))) => Json(status).into_response(),
        Ok(Some(Ok(Reply::Done(done)))) => Json(done).into_response(),
        Ok(Some(Ok(Reply::Record(lines)))) => Json(lines).into_response(),
        Ok(Some(Ok(Reply::Rollouts(rollouts)))) => Json(rollouts).into_response(),
        Ok(Some(Err(refusal))) => failure(refusal.status(), refusal.to_string()),
        Ok(None) => failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
        Err(_) => failure(
            StatusCode::GATEWAY_TIMEOUT,
            "the daemon did not answer in time; its log may say why",
        ),
    }
}

fn failure(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    (status, Json(ErrorBody { error })).into_response()
}

impl Refusal {
    const fn status(&self) -> StatusCode {
        match self {
            Self::UnknownService { .. } => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
