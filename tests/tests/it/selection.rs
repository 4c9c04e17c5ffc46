//! `[service.requests]`: which requests the shadow gets, and what of them.

use tests::{Exchange, Request, Scene, pattern};

use crate::traffic::small;

/// One of each kind that is left out by default, between others on the same connection.
fn asked_of_a_server(_: usize, index: usize) -> Request {
    let with = |method, path: &str| Request {
        method,
        ..Request::post(path, &pattern(300, index as u64))
    };
    match index {
        1 => Request::get("/metrics"),
        3 => Request::get("/v2/health/ready"),
        4 => with("POST", "/v2/repository/models/digits/unload"),
        5 => with("POST", "/v2//repository/models/x/../digits/%75nload"),
        7 => with("DELETE", "/v1/files/7"),
        8 => with("PUT", "/bytes/100000"),
        _ => small(0, index),
    }
}

fn is_small(exchange: &&Exchange) -> bool {
    exchange.request.path == "/echo"
}

#[test]
fn the_shadow_is_not_administered() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.start();
    let sent = scene.load(3, 10, asked_of_a_server);
    scene.account(&sent);
    let replayed: Vec<_> = sent.iter().filter(is_small).cloned().collect();
    assert_eq!(replayed.len(), 3 * 4);
    scene.complete(&replayed, &[("excluded", 3 * 6)]);
}

#[test]
fn a_file_says_what_is_replayed_and_which_headers_are_not() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let set = |scene: &mut Scene, key, values: &[&str]| {
        let values: Vec<_> = values.iter().map(|&value| value.into()).collect();
        scene.set_shadow_section("requests", key, toml::Value::Array(values));
    };
    set(&mut scene, "methods", &["POST", "DELETE"]);
    set(&mut scene, "include", &["/echo", "/v[12]/**"]);
    set(&mut scene, "exclude", &["/v2/repository/index"]);
    set(&mut scene, "strip_headers", &["Authorization", "cookie"]);
    scene.set_shadow_section("requests", "administration", true);
    scene.start();
    let sent = scene.load(2, 6, |_, index| {
        let request = match index {
            0 => small(0, index),
            1 => Request {
                method: "DELETE",
                ..Request::get("/v1/files/7")
            },
            2 => Request::post("/v2/repository/models/digits/unload", b"{}"),
            3 => Request::post("/v2/repository/index", b"{}"),
            4 => Request::post("/label", b"{}"),
            _ => Request::get("/echo"),
        };
        let request = request.header("authorization", "Bearer secret");
        request.header("Cookie", "session=1").header("x-kept", "1")
    });
    let is_replayed = |exchange: &&Exchange| {
        let Request { method, path, .. } = &exchange.request;
        is_small(exchange) && *method == "POST"
            || path.contains("/files/")
            || path.contains("/models/")
    };
    let replayed: Vec<_> = sent.iter().filter(is_replayed).cloned().collect();
    assert_eq!(replayed.len(), 2 * 3);
    scene.serves(&sent);
    scene.complete(&replayed, &[("excluded", 6)]);
    for asked in scene.shadowed() {
        assert_eq!(asked.header("x-kept"), "1");
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
        assert!(!asked.headers.contains_key("cookie"), "{asked:?}");
    }
    let production = scene.production.received();
    let with_key = |asked: &&tests::Received| asked.header("authorization") == "Bearer secret";
    assert_eq!(production.iter().filter(with_key).count(), sent.len());
}
