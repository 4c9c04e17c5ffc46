use axum::body::Body;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;

fn server() -> Router {
    Server {
        model: Arc::new(Model::bundled("v12").unwrap()),
        delay: Duration::ZERO,
        upside_down_for: None,
    }
    .router()
}

async fn ask(method: &str, path: &str, body: String) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Body::from(body))
        .unwrap();
    let response = server().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        serde_json::from_slice(&body).unwrap_or_else(|_| json!(format!("{body:?}"))),
    )
}

#[track_caller]
fn check(method: &str, path: &str, body: &Value, expected: (u16, Value)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    assert_eq!(
        runtime.block_on(ask(method, path, body.to_string())),
        expected
    );
}

fn request(shape: &[usize], data: &Value) -> Value {
    let input = json!({ "name": "pixels", "datatype": "FP32", "shape": shape, "data": data });
    json!({ "id": "7", "inputs": [input] })
}

#[test]
fn health_and_metadata() {
    check(
        "GET",
        "/v2/health/live",
        &json!(null),
        (200, json!({ "live": true })),
    );
    check(
        "GET",
        "/v2/health/ready",
        &json!(null),
        (200, json!({ "ready": true })),
    );
    let ready = json!({ "name": "digits", "ready": true });
    check(
        "GET",
        "/v2/models/digits/ready",
        &json!(null),
        (200, ready.clone()),
    );
    check(
        "GET",
        "/v2/models/digits/versions/v12/ready",
        &json!(null),
        (200, ready),
    );
}

#[tokio::test]
async fn metadata_names_the_tensors() {
    let (status, metadata) = ask("GET", "/v2/models/digits", String::new()).await;
    assert_eq!((status, &metadata["versions"]), (200, &json!(["v12"])));
    assert_eq!(metadata["inputs"][0]["shape"], json!([-1, 64]));
    assert_eq!(metadata["outputs"][1]["name"], "label");
}

#[test]
fn what_is_not_there_is_named() {
    let error = |what: &str| json!({ "error": what });
    check(
        "GET",
        "/v2/models/cats",
        &json!(null),
        (404, error("no model `cats` here, only `digits`")),
    );
    check(
        "GET",
        "/v2/models/digits/versions/v1",
        &json!(null),
        (
            404,
            error("no `digits` in version `v1` here, only `digits` in `v12`"),
        ),
    );
    check("GET", "/v3", &json!(null), (404, error("no such path")));
    check(
        "GET",
        "/v2/models/digits/infer",
        &json!(null),
        (405, error("this path has other methods")),
    );
}

#[tokio::test]
async fn a_digit_is_recognised() {
    let sample = &crate::samples::all()[0];
    let body = request(&[1, 64], &json!(sample.pixels));
    let (status, answer) = ask("POST", "/v2/models/digits/infer", body.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["id"], "7");
    assert_eq!(answer["model_version"], "v12");
    assert_eq!(answer["outputs"][0]["shape"], json!([1, 10]));
    assert_eq!(answer["outputs"][0]["data"].as_array().unwrap().len(), 10);
    assert_eq!(answer["outputs"][1]["data"], json!([sample.label]));
}

#[tokio::test]
async fn outputs_can_be_chosen_and_data_nested() {
    let mut body = request(&[2, 64], &json!([vec![0.0; 64], vec![1.5; 64]]));
    body["outputs"] = json!([{ "name": "label" }]);
    let path = "/v2/models/digits/versions/v12/infer";
    let (status, answer) = ask("POST", path, body.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(answer["outputs"][0]["shape"], json!([2]));
}

#[test]
fn bad_requests_are_explained() {
    let check = |body: Value, expected: &str| {
        check(
            "POST",
            "/v2/models/digits/infer",
            &body,
            (400, json!({ "error": expected })),
        );
    };
    check(json!({ "inputs": [] }), "0 inputs, where one is expected");
    check(
        request(&[1, 63], &json!([0])),
        "input `pixels` has shape [1, 63], not [n, 64]",
    );
    check(
        request(&[1, 64], &json!([0, 1])),
        "2 numbers for shape [1, 64]",
    );
    check(
        request(&[1, 64], &json!(["x"])),
        "`\"x\"` in the data, where a number is expected",
    );
    let mut body = request(&[1, 64], &json!(vec![0.0; 64]));
    body["inputs"][0]["datatype"] = json!("INT8");
    check(
        body.clone(),
        "input `pixels` is INT8, where FP32 is expected",
    );
    body["inputs"][0] = json!({ "name": "x", "datatype": "FP32", "shape": [1, 64], "data": [] });
    check(body, "no input `x`, only `pixels`");
    check(
        json!(3),
        "not an inference request: invalid type: integer `3`, expected struct InferenceRequest at line 1 column 1",
    );
}
