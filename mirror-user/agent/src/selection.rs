//! Which requests are replayed. Pure.
//!
//! A path is judged as a server reads it (RFC 3986, 6.2.2): whoever writes `%75nload` for `unload`, or
//! takes a detour by `..`, means the same.

use std::borrow::Cow;

use globset::{Glob, GlobSet, GlobSetBuilder};
use percent_encoding::percent_decode_str;

use mirror_base::config::glob;

use crate::config::Requests;

/// Paths by which others see whether a server is well: they say nothing of a model.
const HEALTH_CHECKS: &[&str] = &[
    "/metrics",
    "/{health,healthz,health_generate,live,livez,liveness,ready,readyz,readiness,ping,startup}",
    "/{health,healthz}/**",
    "/-/{health,healthz,healthy,ready}",
    // Open Inference Protocol: Triton, KServe, MLServer, OpenVINO.
    "/v2/health/**",
    "/v2/models/*/ready",
    "/v2/models/*/versions/*/ready",
];

/// Paths by which servers are administered: what production is told is not meant for the shadow.
const ADMINISTRATION: &[&str] = &[
    // Triton, KServe and MLServer: load and unload models, share memory, set traces and logs.
    "/v2/repository/**",
    "/v2/{systemsharedmemory,cudasharedmemory}/**",
    "/v2/models/*/{systemsharedmemory,cudasharedmemory}/**",
    "/v2/{trace/setting,logging}",
    "/v2/models/*/trace/setting",
    "/v1/models/*/{load,unload}",
    // vLLM and SGLang.
    "/v1/{load,unload}_lora_adapter",
    "/{load,unload}_lora_adapter{,_from_tensors}",
    "/{sleep,wake_up,wakeup,pause,resume,reset_prefix_cache,reset_mm_cache,reset_encoder_cache}",
    "/{start,stop}_profile",
    "/{collective_rpc,scale_elastic_ep,update_weights,init_weight_transfer_engine}",
    "/{flush_cache,abort_request,configure_logging,set_internal_state,freeze_gc}",
    "/{pause_generation,continue_generation,release_memory_occupation,resume_memory_occupation}",
    "/{init,destroy}_weights_update_group",
    "/{update_weights_from,update_weight_version,init_weights_send_group_for,send_weights_to}*",
    "/{start,stop,dump}_expert_distribution_record",
    // llama.cpp, Ollama, LocalAI.
    "/slots/*",
    "/lora-adapters",
    "/models/{load,unload,apply}",
    "/models/delete/**",
    "/api/{pull,push,create,copy,delete}",
    "/api/blobs/**",
    // TorchServe's management, where it shares the port.
    "/{models,workflows}",
];

/// Which requests of a service are replayed.
#[derive(Debug)]
pub struct Selection {
    methods: Vec<String>,
    include: GlobSet,
    exclude: GlobSet,
}

impl Selection {
    /// What the service's file says.
    pub fn new(requests: &Requests) -> Self {
        let mut exclude = requests.exclude.clone();
        if !requests.health_checks {
            exclude.extend(patterns(HEALTH_CHECKS));
        }
        if !requests.administration {
            exclude.extend(patterns(ADMINISTRATION));
        }
        Self {
            methods: requests.methods.clone(),
            include: set(&requests.include),
            exclude: set(&exclude),
        }
    }

    /// Whether a request is replayed.
    pub fn takes(&self, method: &str, target: &str) -> bool {
        if !self.methods.iter().any(|listed| listed == method) {
            return false;
        }
        let path = path(target);
        self.include.is_match(&path) && !self.exclude.is_match(&path)
    }
}

fn patterns(texts: &'static [&str]) -> impl Iterator<Item = Glob> {
    // A test says that none is refused.
    texts.iter().filter_map(|text| glob(text).ok())
}

fn set(patterns: &[Glob]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(pattern.clone());
    }
    set.build().unwrap_or_default()
}

/// A target's path without what does not tell resources apart: scheme and host, query, parameters of
/// segments, escapes, empty segments and detours.
fn path(target: &str) -> String {
    let end = target.find(['?', '#']).unwrap_or(target.len());
    let mut path = &target[..end];
    if let Some((_, rest)) = path.split_once("://").filter(|_| !path.starts_with('/')) {
        path = rest.find('/').map_or("/", |slash| &rest[slash..]);
    }
    let path: Cow<'_, str> = percent_decode_str(path).decode_utf8_lossy();
    let mut segments = Vec::new();
    for segment in path.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => _ = segments.pop(),
            name => segments.push(name),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(change: impl FnOnce(&mut Requests)) -> Selection {
        let mut requests = Requests::default();
        change(&mut requests);
        Selection::new(&requests)
    }

    #[track_caller]
    fn check(selection: &Selection, taken: &[&str], left: &[&str]) {
        let takes = |request: &&&str| {
            let (method, target) = request.split_once(' ').unwrap();
            selection.takes(method, target)
        };
        assert!(taken.iter().all(|request| takes(&request)), "{taken:?}");
        assert!(!left.iter().any(|request| takes(&request)), "{left:?}");
    }

    #[test]
    fn models_are_asked_and_servers_are_not_administered() {
        let taken = [
            "POST /v2/models/digits/infer",
            "POST /v2/models/digits/versions/3/infer",
            "POST /v1/models/digits:predict",
            "POST /v1/chat/completions",
            "POST /predictions/digits",
            "POST /invocations",
            "POST /models/digits/predict",
            "POST /generate?stream=true",
            "POST /api/chat",
            "POST /",
            "GET /v1/models",
            "GET /v2/models/digits",
            "HEAD /anything",
        ];
        let left = [
            "DELETE /v1/files/7",
            "PUT /v2/models/digits/infer",
            "OPTIONS *",
            "post /v1/chat/completions",
            "GET /metrics",
            "GET /health",
            "GET /health/",
            "GET /v2/health/ready",
            "GET /v2/models/digits/versions/3/ready",
            "POST /v2/repository/models/digits/unload",
            "POST /v2/repository/index",
            "POST //v2/./repository/models/digits/%75nload?x=1",
            "POST /v2/models/../repository/models/digits/load",
            "POST /v2%2Frepository/models/digits/load",
            "POST /v2/repository;v=1/models/digits/load",
            "POST http://production:8000/v2/repository/models/digits/load",
            "POST /v2/systemsharedmemory/region/x/register",
            "POST /v1/load_lora_adapter",
            "POST /sleep?level=2",
            "POST /flush_cache",
            "POST /update_weights_from_disk",
            "POST /api/pull",
            "POST /models?url=digits.mar",
        ];
        check(&of(|_| ()), &taken, &left);
    }

    #[test]
    fn a_file_says_otherwise() {
        let all = of(|requests| {
            requests.health_checks = true;
            requests.administration = true;
            requests.methods.push("DELETE".into());
        });
        let taken = ["GET /metrics", "POST /v2/repository/index", "DELETE /x"];
        check(&all, &taken, &["PUT /x"]);
        let some = of(|requests| {
            let globs = |texts: &[&str]| texts.iter().map(|text| glob(text).unwrap()).collect();
            requests.include = globs(&["/v2/models/*/infer", "/{a,b}/**"]);
            requests.exclude = globs(&["/v2/models/secret/*"]);
        });
        let taken = ["POST /v2/models/digits/infer", "POST /a/b/c", "GET /b/x"];
        let left = [
            "POST /v2/models/secret/infer",
            "POST /v2/models/a/b/infer",
            "POST /c",
        ];
        check(&some, &taken, &left);
    }

    #[test]
    fn every_pattern_of_ours_is_one() {
        let all = of(|_| ()).exclude.len();
        assert_eq!(all, HEALTH_CHECKS.len() + ADMINISTRATION.len());
    }

    proptest! {
        /// However a path is written, it is judged alike.
        #[test]
        fn escapes_and_detours_change_nothing(
            escaped in any::<u32>(),
            detour in prop_oneof![Just("/"), Just("//"), Just("/./"), Just("/x/../")],
        ) {
            let plain = "/v2/repository/models/digits/unload";
            let written: String = plain
                .char_indices()
                .map(|(at, letter)| match escaped >> (at % 32) & 1 {
                    1 if letter != '/' => format!("%{:02x}", letter as u32),
                    _ => letter.to_string(),
                })
                .collect();
            let written = written.replace('/', detour);
            prop_assert_eq!(path(&written), plain);
            prop_assert!(!of(|_| ()).takes("POST", &written));
        }

        #[test]
        fn any_target_has_a_path(target in ".*") {
            prop_assert!(path(&target).starts_with('/'));
        }
    }
}
