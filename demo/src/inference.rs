//! The Open Inference Protocol, version 2 (KServe's REST flavour), for one model with one input
//! `pixels` FP32 `[n, 64]` and two outputs: `probabilities` FP32 `[n, 10]` and `label` INT64 `[n]`.
//!
//! <https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md>

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::{self, INPUTS, Model, OUTPUTS};

/// The model's name in paths.
pub const MODEL: &str = "digits";

/// The longest body that is read, in bytes: some 100,000 digits.
const MAX_BODY: usize = 64 << 20;

/// What a server needs to know.
#[derive(Clone)]
pub struct Server {
    /// The model.
    pub model: Arc<Model>,
    /// How much longer than necessary each inference takes.
    pub delay: Duration,
    /// Whose digits are read upside down: the value of `x-tenant`.
    pub upside_down_for: Option<String>,
}

/// What went wrong, as the protocol wants it told: `{"error": "..."}`.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// An inference request, as far as it is used.
#[derive(Deserialize)]
struct InferenceRequest {
    id: Option<String>,
    inputs: Vec<Tensor>,
    #[serde(default)]
    outputs: Vec<RequestedOutput>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    data: Value,
}

#[derive(Deserialize)]
struct RequestedOutput {
    name: String,
}

/// The answer to an inference request.
#[derive(Serialize)]
struct Answer {
    model_name: &'static str,
    model_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<Output>,
}

#[derive(Serialize)]
struct Output {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data {
    Probabilities(Vec<f32>),
    Labels(Vec<usize>),
}

impl Server {
    /// The paths of the protocol.
    pub fn router(self) -> Router {
        // A model's paths exist with and without its version.
        let model = Router::new()
            .route("/", get(metadata))
            .route("/ready", get(model_ready))
            .route("/infer", post(infer));
        Router::new()
            .route("/v2", get(server_metadata))
            .route(
                "/v2/health/live",
                get(async || Json(json!({ "live": true }))),
            )
            .route(
                "/v2/health/ready",
                get(async || Json(json!({ "ready": true }))),
            )
            .nest(
                "/v2/models/{name}/versions/{version}",
                model
                    .clone()
                    .layer(middleware::from_fn_with_state(self.clone(), this_version)),
            )
            .nest(
                "/v2/models/{name}",
                model.layer(middleware::from_fn_with_state(self.clone(), this_model)),
            )
            .fallback(async || Failure(StatusCode::NOT_FOUND, "no such path".to_owned()))
            .method_not_allowed_fallback(async || {
                Failure(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "this path has other methods".to_owned(),
                )
            })
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self)
    }
}

async fn server_metadata() -> Json<Value> {
    Json(json!({
        "name": "model-server",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": [],
    }))
}

async fn this_model(Path(name): Path<String>, request: Request, next: Next) -> Response {
    if name == MODEL {
        return next.run(request).await;
    }
    Failure(
        StatusCode::NOT_FOUND,
        format!("no model `{name}` here, only `{MODEL}`"),
    )
    .into_response()
}

async fn this_version(
    State(server): State<Server>,
    Path((name, version)): Path<(String, String)>,
    request: Request,
    next: Next,
) -> Response {
    let here = server.model.version();
    if name == MODEL && version == here {
        return next.run(request).await;
    }
    let what = format!("no `{name}` in version `{version}` here, only `{MODEL}` in `{here}`");
    Failure(StatusCode::NOT_FOUND, what).into_response()
}

async fn metadata(State(server): State<Server>) -> Json<Value> {
    let tensor =
        |name, datatype, shape| json!({ "name": name, "datatype": datatype, "shape": shape });
    Json(json!({
        "name": MODEL,
        "versions": [server.model.version()],
        "platform": "modelmirror_demo_mlp",
        "inputs": [tensor("pixels", "FP32", json!([-1, INPUTS]))],
        "outputs": [
            tensor("probabilities", "FP32", json!([-1, OUTPUTS])),
            tensor("label", "INT64", json!([-1])),
        ],
    }))
}

async fn model_ready() -> Json<Value> {
    Json(json!({ "name": MODEL, "ready": true }))
}

async fn infer(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Answer>, Failure> {
    let bad = |what: String| Failure(StatusCode::BAD_REQUEST, what);
    let request: InferenceRequest = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("not an inference request: {error}")))?;
    let tenant = headers.get("x-tenant").map(HeaderValue::as_bytes);
    let unlucky = server.upside_down_for.as_deref().map(str::as_bytes);
    let upside_down = tenant.is_some() && tenant == unlucky;
    let answer = answer(&server.model, request, upside_down).map_err(bad)?;
    if !server.delay.is_zero() {
        tokio::time::sleep(server.delay).await;
    }
    Ok(Json(answer))
}

/// Runs the model over every row of the request's input.
fn answer(model: &Model, request: InferenceRequest, upside_down: bool) -> Result<Answer, String> {
    let [input] = request.inputs.as_slice() else {
        return Err(format!(
            "{} inputs, where one is expected",
            request.inputs.len()
        ));
    };
    let mut pixels = input.pixels()?;
    if upside_down {
        pixels.chunks_mut(INPUTS).for_each(<[f32]>::reverse);
    }
    let rows: Vec<Vec<f32>> = pixels
        .chunks(INPUTS)
        .map(|digit| model.probabilities(digit))
        .collect();
    let labels = rows.iter().map(|digit| model::label(digit)).collect();
    let mut outputs = vec![
        Output {
            name: "probabilities",
            datatype: "FP32",
            shape: vec![rows.len(), OUTPUTS],
            data: Data::Probabilities(rows.concat()),
        },
        Output {
            name: "label",
            datatype: "INT64",
            shape: vec![rows.len()],
            data: Data::Labels(labels),
        },
    ];
    if !request.outputs.is_empty() {
        let known = |wanted: &RequestedOutput| outputs.iter().any(|o| o.name == wanted.name);
        if let Some(unknown) = request.outputs.iter().find(|wanted| !known(wanted)) {
            return Err(format!("no output `{}`", unknown.name));
        }
        outputs.retain(|output| {
            request
                .outputs
                .iter()
                .any(|wanted| output.name == wanted.name)
        });
    }
    let model_version = model.version().to_owned();
    Ok(Answer {
        model_name: MODEL,
        model_version,
        id: request.id,
        outputs,
    })
}

impl Tensor {
    /// The pixels, row after row, or what is wrong with them.
    fn pixels(&self) -> Result<Vec<f32>, String> {
        if self.name != "pixels" {
            return Err(format!("no input `{}`, only `pixels`", self.name));
        }
        if self.datatype != "FP32" {
            return Err(format!(
                "input `pixels` is {}, where FP32 is expected",
                self.datatype
            ));
        }
        let [rows, INPUTS] = self.shape[..] else {
            let shape = &self.shape;
            return Err(format!(
                "input `pixels` has shape {shape:?}, not [n, {INPUTS}]"
            ));
        };
        let mut pixels = Vec::new();
        flatten(&self.data, &mut pixels)?;
        if Some(pixels.len()) != rows.checked_mul(INPUTS) {
            return Err(format!(
                "{} numbers for shape [{rows}, {INPUTS}]",
                pixels.len()
            ));
        }
        Ok(pixels)
    }
}

/// Numbers in row-major order: the protocol allows them nested or flat.
fn flatten(data: &Value, numbers: &mut Vec<f32>) -> Result<(), String> {
    match data {
        Value::Array(items) => items.iter().try_for_each(|item| flatten(item, numbers)),
        Value::Number(number) => {
            numbers.push(number.as_f64().unwrap_or(f64::NAN) as f32);
            Ok(())
        }
        other => Err(format!("`{other}` in the data, where a number is expected")),
    }
}

#[cfg(test)]
mod tests;
