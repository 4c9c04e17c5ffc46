//! `[service.rollout]`, and plan files, which hold the same without that header.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use mirror_rollout::plan::{
    Baseline, Canary, FinishProbe, Hook, HookPoint, MetricGate, OnTimeout, Plan, Shadow,
};
use toml::Spanned;
use toml::de::DeValue;

use mirror_base::config::table::{Problems, Section, parse};
use mirror_base::config::{Error, Fault, Problem, values};

/// Far more than an answer that is always the same.
const LARGEST_ANSWER: u64 = 1 << 20;

const ON_TIMEOUT: &[(&str, OnTimeout)] =
    &[("hold", OnTimeout::Hold), ("rollback", OnTimeout::Rollback)];

const POINTS: &[(&str, HookPoint)] = &[
    ("before", HookPoint::Before),
    ("stage", HookPoint::Stage),
    ("rollback", HookPoint::Rollback),
    ("promotion", HookPoint::Promotion),
];

/// Reads the text of a plan file: what stands under `[service.rollout]` in a config. Whether the
/// service's config has what its shadow stage needs is not looked at.
///
/// # Errors
/// Every problem that was found.
pub fn plan(text: &str) -> Result<Plan, Vec<Problem>> {
    let table = parse(text)?;
    let problems = Problems::default();
    let root = Section::root(&table, &problems);
    if let Some(place) = root.place_of("service") {
        let what = "a plan file holds what stands under [service.rollout], without that header";
        let cure = "take `service.rollout` out of the headers: [service.rollout.canary] becomes [canary], [[service.rollout.gate]] becomes [[gate]], and the keys below [service.rollout] come first";
        let fault = Fault::new(what, cure);
        return Err(vec![Problem { span: place, fault }]);
    }
    let plan = TypedPlan::read(root).plan;
    problems.into_result(plan)
}

/// Reads a plan file.
///
/// # Errors
/// When it cannot be read, and with every problem that was found in it.
pub fn read_plan(file: &Path) -> Result<Plan, Error> {
    super::read(file, plan)
}

/// What of a service is copied, and whether a shadow stage can go by it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Copied {
    /// Both directions of stable's connections, and the agent is asked.
    Compared,
    /// There is no mirror.
    Nothing,
    /// One direction alone.
    RequestsOnly,
    /// The canary's connections alone.
    CanaryOnly,
}

/// The section as it was typed.
pub(super) struct TypedPlan {
    plan: Option<Plan>,
    /// Where its shadow stage begins, if it has one.
    shadow: Option<Range<usize>>,
}

impl TypedPlan {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let default = Plan::default();
        let stages = section.list("stages", values::fine_share);
        let baseline = section.or("baseline", default.baseline, baseline);
        let tick = section.or("tick", default.tick, values::duration);
        let prometheus = section.optional("prometheus", values::url);
        let shadow = section.section("shadow");
        let begins = shadow.as_ref().map(Section::span);
        let shadow = shadow.map(read_shadow);
        let canary = section.section("canary");
        let canary = canary.map_or_else(Canary::default, read_canary);
        let gates = section.sections("gate").into_iter().map(read_gate);
        let gates: Option<Vec<_>> = gates.collect::<Vec<_>>().into_iter().collect();
        let hooks = section.sections("hook").into_iter().map(read_hook);
        let hooks: Option<Vec<_>> = hooks.collect::<Vec<_>>().into_iter().collect();
        let finish_probe = section.section("finish_probe").and_then(read_finish_probe);
        let plan = gates.zip(hooks).map(|(gates, hooks)| Plan {
            stages: stages.map_or(default.stages, |stages| {
                stages.into_iter().map(Spanned::into_inner).collect()
            }),
            baseline: baseline.into_inner(),
            tick: tick.into_inner(),
            shadow,
            canary,
            prometheus: prometheus.map(|base| base.into_inner().trim_end_matches('/').into()),
            gates,
            hooks,
            finish_probe,
        });
        for unsound in plan.iter().flat_map(Plan::unsound) {
            section.refuse_below(&unsound.at, Fault::new(unsound.what, unsound.cure));
        }
        section.finish();
        Self {
            plan,
            shadow: begins,
        }
    }

    /// The shadow stage goes by what the agent says of the service's mirror.
    pub(super) fn check(&self, mirror: Copied, problems: &Problems) {
        let Some(place) = &self.shadow else { return };
        let (what, cure) = match mirror {
            Copied::Compared => return,
            Copied::Nothing => (
                "there is no [service.mirror]",
                "add one with `agent` and `agent_key`",
            ),
            Copied::RequestsOnly => (
                "[service.mirror] copies requests only, and nothing is compared",
                "write directions = \"both\" there",
            ),
            Copied::CanaryOnly => (
                "[service.mirror] copies none of stable's connections, and only those count",
                "let `arms` hold \"stable\" there",
            ),
        };
        let what = format!("a shadow stage goes by what the agent says, but {what}");
        let cure = format!("{cure}, or take [service.rollout.shadow] out");
        problems.add(place.clone(), Fault::new(what, cure));
    }

    pub(super) fn build(self) -> Option<Plan> {
        self.plan
    }
}

fn read_shadow(mut section: Section<'_>) -> Shadow {
    let default = Shadow::default();
    let many = || values::integer(0, u64::MAX);
    let agreement = section.value("agreement", default.agreement, values::share);
    // 1 - 0.99 is 0.010000000000000009.
    let max_excess = ((1.0 - agreement) * 1e9).round() / 1e9;
    let read = Shadow {
        min_compared: section.value("min_compared", default.min_compared, many()),
        agreement,
        max_excess: Some(section.value("max_excess", max_excess, values::share)),
        max_both_failed: section.value("max_both_failed", default.max_both_failed, values::share),
        max_latency_ratio: section.value(
            "max_latency_ratio",
            default.max_latency_ratio,
            values::finite,
        ),
        max_error_delta: section.value("max_error_delta", default.max_error_delta, values::share),
        max_accuracy_drop: section.maybe("max_accuracy_drop", values::share),
        max_cpu_ratio: section.maybe("max_cpu_ratio", values::finite),
        max_memory_ratio: section.maybe("max_memory_ratio", values::finite),
        max_duration: section.value("max_duration", default.max_duration, values::duration),
        on_timeout: section.value("on_timeout", default.on_timeout, values::choice(ON_TIMEOUT)),
    };
    section.finish();
    read
}

fn read_canary(mut section: Section<'_>) -> Canary {
    let default = Canary::default();
    let many = || values::integer(0, u64::MAX);
    let mut delta = |key, default| section.value(key, default, values::share);
    let [
        max_error_delta,
        max_client_error_delta,
        max_redirect_delta,
        max_short_delta,
        max_aborted_delta,
    ] = [
        delta("max_error_delta", default.max_error_delta),
        delta("max_client_error_delta", default.max_client_error_delta),
        delta("max_redirect_delta", default.max_redirect_delta),
        delta("max_short_delta", default.max_short_delta),
        delta("max_aborted_delta", default.max_aborted_delta),
    ];
    let read = Canary {
        min_duration: section.value("min_duration", default.min_duration, values::span),
        max_duration: section.value("max_duration", default.max_duration, values::duration),
        on_timeout: section.value("on_timeout", default.on_timeout, values::choice(ON_TIMEOUT)),
        min_requests: section.value("min_requests", default.min_requests, many()),
        max_error_delta,
        max_client_error_delta,
        max_redirect_delta,
        max_short_delta,
        max_aborted_delta,
        max_latency_ratio: section.value(
            "max_latency_ratio",
            default.max_latency_ratio,
            values::finite,
        ),
        max_latency: section.maybe("max_latency", values::duration),
        hard_error_rate: section.value("hard_error_rate", default.hard_error_rate, values::share),
        hard_reset_delta: section.value(
            "hard_reset_delta",
            default.hard_reset_delta,
            values::share,
        ),
        proven_from: section.value("proven_from", default.proven_from, values::share),
        confidence: section.value("confidence", default.confidence, values::finite),
        max_cpu_ratio: section.maybe("max_cpu_ratio", values::finite),
        max_memory_ratio: section.maybe("max_memory_ratio", values::finite),
        drain: section.value("drain", default.drain, values::span),
        bake: section.value("bake", default.bake, values::span),
        holdback: section.value("holdback", default.holdback, values::fine_share),
        warmup: section.value("warmup", default.warmup, values::span),
        keep_stable: section.value("keep_stable", default.keep_stable, values::span),
    };
    section.finish();
    read
}

fn read_gate(mut section: Section<'_>) -> Option<MetricGate> {
    let name = section.required("name", "name = \"conversion\"", values::name);
    let example = "query = 'sum(rate(orders_total{version=\"$version\"}[5m]))'";
    let query = section.required("query", example, values::words);
    // One that was refused is not one that was left out.
    let limits = ["min", "max", "max_delta"].map(|key| {
        let limit = section.maybe(key, values::finite);
        (limit.is_some() || !section.has(key)).then_some(limit)
    });
    let two_minutes = Duration::from_secs(120);
    let staleness = section.value("staleness", two_minutes, values::duration);
    let hold_for = section.value("for", Duration::ZERO, values::span);
    section.finish();
    let [min, max, max_delta] = limits;
    let (min, max, max_delta) = (min?, max?, max_delta?);
    Some(MetricGate {
        name: name?.into_inner(),
        query: query?.into_inner(),
        min,
        max,
        max_delta,
        staleness,
        hold_for,
    })
}

fn read_finish_probe(mut section: Section<'_>) -> Option<FinishProbe> {
    let path = section.required("path", "path = \"/v2\"", values::request_path);
    let header = section.maybe("header", values::header);
    let expect = section.maybe("expect", values::words);
    section.finish();
    Some(FinishProbe {
        path: path?.into_inner(),
        header,
        expect,
    })
}

fn read_hook(mut section: Section<'_>) -> Option<Hook> {
    let on = section.required("on", "on = \"stage\"", values::choice(POINTS));
    let url = section.required("url", "url = \"http://127.0.0.1:9000/stage\"", values::url);
    let headers_file = section.maybe("headers_file", values::path);
    let approve = section.value("approve", false, values::flag);
    let five_seconds = Duration::from_secs(5);
    let timeout = section.value("timeout", five_seconds, values::duration);
    section.finish();
    Some(Hook {
        on: on?.into_inner(),
        url: url?.into_inner().into(),
        headers_file,
        approve,
        timeout,
    })
}

/// `stable`, `none`, or the file with an answer, which is read at once.
fn baseline(value: &DeValue<'_>) -> Result<Baseline, Fault> {
    const WORDS: &[(&str, Option<()>)] = &[("stable", Some(())), ("none", None)];
    if value.as_str().is_some_and(|typed| typed.starts_with('/')) {
        return answer(&values::path(value)?).map(Baseline::Constant);
    }
    match values::choice(WORDS)(value) {
        Ok(Some(())) => Ok(Baseline::Stable),
        Ok(None) => Ok(Baseline::None),
        Err(Fault { what, cure }) => {
            let file = "or the whole path of a file with the answer, beginning with /";
            Err(Fault::new(what, format!("{cure}, {file}")))
        }
    }
}

/// A constant answer: the file's text without the final line break.
fn answer(file: &Path) -> Result<String, Fault> {
    let shown = file.display();
    let cure = "write the answer that is always given into it, as the model server would";
    let refuse = |error: std::io::Error| Fault::new(format!("{shown}: {error}"), cure);
    let about = std::fs::metadata(file).map_err(refuse)?;
    if !about.is_file() || about.len() > LARGEST_ANSWER {
        let what = format!("{shown} is not a file of at most {LARGEST_ANSWER} bytes");
        return Err(Fault::new(what, cure));
    }
    let text = std::fs::read_to_string(file).map_err(refuse)?;
    match text.trim_end() {
        "" => Err(Fault::new(format!("{shown} is empty"), cure)),
        answer => Ok(answer.to_owned()),
    }
}
