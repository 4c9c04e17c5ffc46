//! The shadow host's file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mirror_base::config::table::{Problems, Section, parse};
use mirror_base::config::{
    Fault, KEY_FILE, Problem, RECORD_DIR, SHADOW_SOCKET, collide, glob, refuse_api,
    refuse_shared_names, values,
};
use toml::Spanned;
use toml::de::DeValue;

use super::{
    Columns, Compare, Control, HostHeader, Labels, Payloads, Record, Requests, Shadow,
    ShadowService, Slice, Tap,
};
use mirror_base::transport::keys::PublicKey;

const MIB: u64 = 1 << 20;

/// Reads the text of a shadow host's config.
///
/// # Errors
/// Every problem that was found.
pub fn shadow(text: &str) -> Result<Shadow, Vec<Problem>> {
    let table = parse(text)?;
    let problems = Problems::default();
    let typed = Typed::read(Section::root(&table, &problems));
    typed.check(&problems);
    problems.into_result(typed.build())
}

/// The file as it was typed: nothing where a value is missing or was refused.
struct Typed {
    listen: Spanned<SocketAddr>,
    vxlan: Option<Spanned<SocketAddr>>,
    admin: Spanned<SocketAddr>,
    key_file: PathBuf,
    control_socket: PathBuf,
    taps: Vec<TypedTap>,
    insecure: bool,
    allow: Vec<Spanned<IpNet>>,
    record_dir: PathBuf,
    record_limit: u64,
    memory: Spanned<u64>,
    batch_interval: Duration,
    services: Vec<TypedService>,
}

struct TypedTap {
    name: Option<Spanned<String>>,
    key: Option<Spanned<PublicKey>>,
}

struct TypedService {
    name: Option<Spanned<String>>,
    id: Option<Spanned<u32>>,
    addresses: Vec<Spanned<SocketAddr>>,
    target: Option<Spanned<SocketAddr>>,
    control: Option<Spanned<SocketAddr>>,
    control_sample: Option<Spanned<f64>>,
    repeat: Option<Spanned<f64>>,
    host: HostHeader,
    version: String,
    timeout: Duration,
    incomplete_after: Duration,
    concurrency: u64,
    queue: u64,
    max_body: Spanned<u64>,
    requests: Requests,
    compare: Compare,
    record: Record,
    labels: Option<Spanned<Labels>>,
}

/// The share of requests that a control answers, unless the file says otherwise.
const CONTROL_SAMPLE: f64 = 0.1;

const HOSTS: &[(&str, HostHeader)] = &[("keep", HostHeader::Keep), ("target", HostHeader::Target)];
const PAYLOADS: &[(&str, Payloads)] = &[
    ("none", Payloads::None),
    ("different", Payloads::Different),
    ("sampled", Payloads::Sampled),
    ("all", Payloads::All),
];

/// Headers whose values are written unless the file says otherwise: what says how a message is, not whose.
const HARMLESS: [&str; 16] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "retry-after",
    "server",
    "traceparent",
    "transfer-encoding",
    "user-agent",
    "vary",
    "x-request-id",
];

/// Methods that ask a model something; others change what a server is.
const METHODS: [&str; 3] = ["GET", "HEAD", "POST"];

impl Typed {
    fn read(mut root: Section<'_>) -> Self {
        refuse_api(
            &mut root,
            "nodes ask at `listen`, and are known by their keys",
            "take it out, and name each node in a [[tap]] with its key",
        );
        root.gone(
            "gather",
            "it is called `batch_interval`",
            "write `batch_interval` there",
        );
        let typed = Self {
            listen: root.or("listen", ([0, 0, 0, 0], 6181).into(), values::listen),
            vxlan: root.optional("vxlan", values::listen),
            admin: root.or("admin", ([127, 0, 0, 1], 9470).into(), values::listen),
            key_file: root.value("key_file", KEY_FILE.into(), values::path),
            control_socket: root.value("control_socket", SHADOW_SOCKET.into(), values::socket_path),
            taps: root
                .sections("tap")
                .into_iter()
                .map(TypedTap::read)
                .collect(),
            insecure: root.value("insecure", false, values::flag),
            allow: root.list("allow", values::network).unwrap_or_default(),
            record_dir: root
                .or("record_dir", RECORD_DIR.into(), values::path)
                .into_inner(),
            record_limit: root.or("record_limit", 10 << 30, values::size).into_inner(),
            memory: root.or("memory", 1 << 30, values::size),
            batch_interval: root.value(
                "batch_interval",
                Duration::from_micros(500),
                values::moment,
            ),
            services: root
                .sections("service")
                .into_iter()
                .map(TypedService::read)
                .collect(),
        };
        if typed.services.is_empty() {
            root.missing_sections("service", "name, id and target");
        }
        typed.check_taps(&root);
        root.finish();
        typed
    }

    /// What only shows when values are held against each other.
    fn check(&self, problems: &Problems) {
        refuse_shared_names(
            problems,
            self.services
                .iter()
                .map(|s| (s.name.as_ref(), s.id.as_ref())),
        );
        let addresses = self.services.iter().flat_map(|service| &service.addresses);
        problems.refuse_twins(
            addresses,
            "address",
            "give every address to one service, once",
        );
        let names = self.taps.iter().filter_map(|tap| tap.name.as_ref());
        problems.refuse_twins(names, "tap name", "give every tap a name of its own");
        let keys = self.taps.iter().filter_map(|tap| tap.key.as_ref());
        let cure = "every node has a key of its own: `modelmirror keys new` makes one there";
        problems.refuse_twins(keys, "tap key", cure);
        self.check_listeners(problems);
        self.check_memory(problems);
        self.check_vxlan(problems);
        self.check_labels(problems);
        for service in &self.services {
            service.check_control(problems);
        }
    }

    /// Somebody must be allowed to send: taps by their keys, or hosts by their addresses.
    fn check_taps(&self, root: &Section<'_>) {
        let by_address = self.insecure || self.vxlan.is_some();
        if self.taps.is_empty() && !by_address {
            root.lacks_sections(
                "tap",
                "add what `modelmirror keys show` prints on the node: a [[tap]] with name and key (or insecure = true: copies in clear text, from `allow`)".to_owned(),
            );
        }
        if by_address && self.allow.is_empty() && !root.is_filled("allow") {
            root.lacks(
                "allow",
                "say who may send without a key: allow = [\"10.0.0.5/32\"]",
            );
        }
        if let (false, Some(place)) = (by_address, root.place_of("allow")) {
            root.refuse(
                place,
                Fault::new(
                    "`allow` is who may send without a key, and that is nobody here",
                    "take it out: taps are known by their keys (`[[tap]]`)",
                ),
            );
        }
    }

    fn check_listeners(&self, problems: &Problems) {
        let udp = [
            ("listen", Some(&self.listen)),
            ("vxlan", self.vxlan.as_ref()),
        ];
        let tcp = [("listen", Some(&self.listen)), ("admin", Some(&self.admin))];
        for [(name, first), (other, second)] in [udp, tcp] {
            let (Some(first), Some(second)) = (first, second) else {
                continue;
            };
            if collide(*first.get_ref(), *second.get_ref()) {
                let what = format!("`{other}` and `{name}` listen on the same port");
                problems.add(
                    second.span(),
                    Fault::new(what, "give each a port of its own"),
                );
            }
        }
        for (name, listener) in tcp {
            let Some(listener) = listener else { continue };
            let targets = self.services.iter().flat_map(|s| [&s.target, &s.control]);
            for target in targets
                .flatten()
                .filter(|t| t.get_ref() == listener.get_ref())
            {
                let what = format!("{} is `{name}` of the agent itself", target.get_ref());
                let cure = "write where the model listens";
                problems.add(target.span(), Fault::new(what, cure));
            }
        }
    }

    fn check_memory(&self, problems: &Problems) {
        let memory = *self.memory.get_ref();
        if memory < 16 * MIB {
            let what = format!("{memory} bytes of memory are too few to rebuild requests in");
            problems.add(
                self.memory.span(),
                Fault::new(what, "write \"16MiB\" or more"),
            );
            return;
        }
        for service in &self.services {
            let max_body = *service.max_body.get_ref();
            if max_body > memory {
                let what = format!(
                    "a body of {max_body} bytes (`max_body`) does not fit into `memory`, {memory} bytes"
                );
                let cure = "raise `memory` to at least three times `max_body`, or lower `max_body`";
                problems.add(service.max_body.span(), Fault::new(what, cure));
            }
        }
    }

    /// Labels are held against predictions.
    fn check_labels(&self, problems: &Problems) {
        for service in &self.services {
            if let (Some(labels), None) = (&service.labels, &service.compare.prediction) {
                let what = "labels say which prediction was right, and no prediction is recorded";
                let cure = "say in [service.compare] where it is: prediction = \"/outputs/0/data\"";
                problems.add(labels.span(), Fault::new(what, cure));
            }
        }
    }

    fn check_vxlan(&self, problems: &Problems) {
        let named = self.services.iter().any(|s| !s.addresses.is_empty());
        if let (Some(vxlan), false) = (&self.vxlan, named) {
            let what = "`vxlan` is on, but no service says what clients dial";
            let cure = "VXLAN does not name the service: add `addresses = [\"10.0.0.5:8000\"]` to each [[service]]";
            problems.add(vxlan.span(), Fault::new(what, cure));
        }
    }

    fn build(self) -> Option<Shadow> {
        Some(Shadow {
            listen: self.listen.into_inner(),
            vxlan: self.vxlan.map(Spanned::into_inner),
            admin: self.admin.into_inner(),
            key_file: self.key_file,
            control_socket: self.control_socket,
            taps: self
                .taps
                .into_iter()
                .map(TypedTap::build)
                .collect::<Option<_>>()?,
            insecure: self.insecure,
            allow: self.allow.into_iter().map(Spanned::into_inner).collect(),
            record_dir: self.record_dir,
            record_limit: self.record_limit,
            batch_interval: self.batch_interval,
            memory: usize::try_from(self.memory.into_inner()).unwrap_or(usize::MAX),
            services: self
                .services
                .into_iter()
                .map(TypedService::build)
                .collect::<Option<_>>()?,
        })
    }
}

impl TypedTap {
    fn read(mut section: Section<'_>) -> Self {
        let example = "key = \"...\", as `modelmirror keys show` prints it on the node";
        let typed = Self {
            name: section.required("name", "name = \"node-1\"", values::tap_name),
            key: section.required("key", example, values::public_key),
        };
        section.finish();
        typed
    }

    fn build(self) -> Option<Tap> {
        Some(Tap {
            name: self.name?.into_inner(),
            key: self.key?.into_inner(),
        })
    }
}

impl TypedService {
    fn read(mut section: Section<'_>) -> Self {
        let typed = Self {
            name: section.required("name", "name = \"sentiment\"", values::service_name),
            id: section.required("id", "id = 101", values::id),
            addresses: section
                .list("addresses", values::remote)
                .unwrap_or_default(),
            target: section.required("target", "target = \"127.0.0.1:8000\"", values::remote),
            control: section.optional("control", values::remote),
            control_sample: section.optional("control_sample", values::share),
            repeat: section.optional("repeat", values::share),
            host: section
                .or("host", HostHeader::Keep, values::choice(HOSTS))
                .into_inner(),
            version: section
                .or("version", "shadow".to_owned(), values::name)
                .into_inner(),
            timeout: section
                .or("timeout", Duration::from_secs(5), values::duration)
                .into_inner(),
            incomplete_after: section.value(
                "incomplete_after",
                Duration::from_secs(30),
                values::duration,
            ),
            concurrency: section
                .or("concurrency", 64, values::integer(1, 65_536))
                .into_inner(),
            queue: section
                .or("queue", 8192, values::integer(1, 1 << 20))
                .into_inner(),
            max_body: section.or("max_body", 64 * MIB, values::size),
            requests: requests(section.section("requests")),
            compare: compare(section.section("compare")),
            record: record(section.section("record")),
            labels: labels(section.section("labels")),
        };
        section.finish();
        typed
    }

    /// What is answered twice, and by whom.
    fn check_control(&self, problems: &Problems) {
        if let (Some(control), Some(target)) = (&self.control, &self.target)
            && control.get_ref() == target.get_ref()
        {
            let what = format!("{} is the shadow itself (`target`)", target.get_ref());
            let cure =
                "write where a copy of the version in production listens, which nobody else uses";
            problems.add(control.span(), Fault::new(what, cure));
        }
        let sample = self.control_sample.as_ref();
        if let Some(none) = sample.filter(|sample| *sample.get_ref() == 0.0) {
            let what = "of no request at all the old version's noise would be known";
            let cure = "write a share such as 0.1, or take `control` out";
            problems.add(none.span(), Fault::new(what, cure));
        }
        if self.control.is_some() {
            return;
        }
        let cure = "say where a copy of the old version listens: control = \"127.0.0.1:8001\"";
        if let Some(sample) = sample {
            let what = "`control_sample` is a share of requests for a `control`, and there is none";
            problems.add(sample.span(), Fault::new(what, cure));
        }
        if let Some(repeat) = self
            .repeat
            .as_ref()
            .filter(|repeat| *repeat.get_ref() > 0.0)
        {
            let what = "`repeat` alone is blind to a version that is noisier than the old one";
            problems.add(repeat.span(), Fault::new(what, cure));
        }
    }

    fn build(self) -> Option<ShadowService> {
        Some(ShadowService {
            name: self.name?.into_inner(),
            id: self.id?.into_inner(),
            addresses: self
                .addresses
                .into_iter()
                .map(Spanned::into_inner)
                .collect(),
            target: self.target?.into_inner(),
            control: self.control.map(|control| Control {
                address: control.into_inner(),
                sample: self
                    .control_sample
                    .map_or(CONTROL_SAMPLE, Spanned::into_inner),
                repeat: self.repeat.map_or(0.0, Spanned::into_inner),
            }),
            host: self.host,
            version: self.version,
            timeout: self.timeout,
            incomplete_after: self.incomplete_after,
            concurrency: self.concurrency as usize,
            queue: self.queue as usize,
            max_body: usize::try_from(self.max_body.into_inner()).unwrap_or(usize::MAX),
            requests: self.requests,
            compare: self.compare,
            record: self.record,
            labels: self.labels.map(Spanned::into_inner),
        })
    }
}

fn requests(section: Option<Section<'_>>) -> Requests {
    let mut requests = Requests::default();
    let Some(mut section) = section else {
        return requests;
    };
    if let Some(methods) = plain(section.list("methods", values::method)) {
        requests.methods = methods;
    }
    if let Some(include) = plain(section.list("include", values::path_pattern)) {
        requests.include = include;
    }
    requests.exclude = plain(section.list("exclude", values::path_pattern)).unwrap_or_default();
    requests.health_checks = section.value("health_checks", false, values::flag);
    requests.administration = section.value("administration", false, values::flag);
    requests.strip_headers =
        plain(section.list("strip_headers", values::header)).unwrap_or_default();
    section.finish();
    requests
}

fn compare(section: Option<Section<'_>>) -> Compare {
    let mut compare = Compare::default();
    let Some(mut section) = section else {
        return compare;
    };
    compare.prediction = section
        .optional("prediction", values::pointer)
        .map(Spanned::into_inner);
    compare.slice = section.optional("slice", slice).map(Spanned::into_inner);
    compare.slices = plain(section.list("slices", values::words)).unwrap_or_default();
    compare.ignore = plain(section.list("ignore", values::pointer)).unwrap_or_default();
    compare.absolute = section
        .or("absolute", compare.absolute, values::tolerance)
        .into_inner();
    compare.relative = section
        .or("relative", compare.relative, values::tolerance)
        .into_inner();
    section.finish();
    compare
}

fn record(section: Option<Section<'_>>) -> Record {
    let mut record = Record::default();
    let Some(mut section) = section else {
        return record;
    };
    record.payloads = section
        .or("payloads", record.payloads, values::choice(PAYLOADS))
        .into_inner();
    record.sample = section
        .or("sample", record.sample, values::share)
        .into_inner();
    section.gone(
        "redact_headers",
        "only the headers that `headers` names are written now",
        "take it out, and name in `headers` what may be written",
    );
    if let Some(headers) = plain(section.list("headers", values::header)) {
        record.headers = headers;
    }
    record.redact_fields =
        plain(section.list("redact_fields", values::pointer)).unwrap_or_default();
    section.finish();
    record
}

fn labels(section: Option<Section<'_>>) -> Option<Spanned<Labels>> {
    let mut section = section?;
    let example = "file = \"/var/lib/modelmirror/labels.jsonl\"";
    let file = section.required("file", example, values::path);
    let columns = Columns {
        id: section
            .optional("id_field", values::field)
            .map(Spanned::into_inner),
        label: section
            .optional("label_field", values::field)
            .map(Spanned::into_inner),
    };
    let interval = section
        .or("interval", Duration::from_secs(60), values::duration)
        .into_inner();
    let span = section.span();
    section.finish();
    let labels = Labels {
        file: file?.into_inner(),
        columns,
        interval,
    };
    Some(Spanned::new(span, labels))
}

fn plain<T>(items: Option<Vec<Spanned<T>>>) -> Option<Vec<T>> {
    Some(items?.into_iter().map(Spanned::into_inner).collect())
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            methods: METHODS.map(str::to_owned).to_vec(),
            include: glob("/**").into_iter().collect(),
            exclude: Vec::new(),
            health_checks: false,
            administration: false,
            strip_headers: Vec::new(),
        }
    }
}

impl Default for Compare {
    fn default() -> Self {
        Self {
            prediction: None,
            slice: None,
            slices: Vec::new(),
            ignore: Vec::new(),
            absolute: 1e-6,
            relative: 1e-4,
        }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self {
            payloads: Payloads::None,
            sample: 0.01,
            headers: HARMLESS.map(str::to_owned).to_vec(),
            redact_fields: Vec::new(),
        }
    }
}

/// `header:NAME`, or a JSON pointer into the request.
fn slice(value: &DeValue<'_>) -> Result<Slice, Fault> {
    let cure =
        "write \"header:NAME\", or a JSON pointer into the request such as \"/parameters/tenant\"";
    let typed = values::text(value, cure)?;
    if let Some(name) = typed.strip_prefix("header:") {
        return values::header(&DeValue::String(name.into())).map(Slice::Header);
    }
    if typed.is_empty() || !typed.starts_with('/') {
        let what = format!("{typed:?} is neither a header nor a JSON pointer");
        return Err(Fault::new(what, cure));
    }
    values::pointer(value).map(Slice::Pointer)
}
