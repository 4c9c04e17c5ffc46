//! Debian's nginx: the models, and the proxies.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Client, Namespace, Process, Request, try_within};

/// Where models answer.
pub(crate) const MODEL_PORT: u16 = 8000;

/// Where proxies answer.
pub(crate) const PROXY_PORT: u16 = 8001;

/// Has a proxy keep its connections to models open.
pub(crate) const KEEP_ALIVE: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\";";

/// A model of this version, which answers the same to everything.
pub(crate) fn model(host: &Namespace, folder: &Path, version: &str, port: u16) -> Result<Process> {
    let answer = serde_json::json!({
        "model_name": "digits",
        "model_version": version,
        "outputs": [{
            "name": "probabilities", "datatype": "FP32", "shape": [1, 10],
            "data": [0.01, 0.01, 0.01, 0.91, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01],
        }],
    });
    let server = format!(
        "server {{ listen {port}; default_type application/json; location / {{ return 200 '{answer}'; }} }}"
    );
    let name = format!("{} {version}", host.name());
    start(host, folder, &name, &http(&server), port)
}

/// A proxy in front of the model that sends every request to the shadow too.
pub(crate) fn mirroring_proxy(host: &Namespace, folder: &Path, shadow: &str) -> Result<Process> {
    let server = format!(
        "upstream production {{ server 127.0.0.1:{MODEL_PORT}; keepalive 64; }}
         upstream shadow {{ server {shadow}:{MODEL_PORT}; keepalive 64; }}
         server {{
             listen {PROXY_PORT};
             location / {{ mirror /mirror; proxy_pass http://production; {KEEP_ALIVE} }}
             location = /mirror {{ internal; proxy_pass http://shadow$request_uri; {KEEP_ALIVE} }}
         }}"
    );
    start(host, folder, "proxy", &http(&server), PROXY_PORT)
}

/// The part of a config that is about HTTP, with these servers.
pub(crate) fn http(servers: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .concat();
    format!(
        "http {{
             access_log off; {temporary}
             tcp_nodelay on; keepalive_requests 1000000000; client_header_buffer_size 4k; client_body_buffer_size 64k;
             {servers}
         }}"
    )
}

/// Starts one process of nginx that does what `parts` of its config say, and waits until it answers.
pub(crate) fn start(
    host: &Namespace,
    folder: &Path,
    name: &str,
    parts: &str,
    port: u16,
) -> Result<Process> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).context("cannot make a folder for nginx")?;
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr error;
         {parts}
         events {{ worker_connections 4096; }}\n"
    );
    fs::write(folder.join("nginx.conf"), config).context("cannot write nginx.conf")?;
    let mut command = host.command("nginx");
    command.arg("-p").arg(&folder);
    command.args(["-c", "nginx.conf", "-e", "stderr"]);
    let process = host.spawn(&format!("nginx {name}"), command)?;
    answering(process, host, port)
}

/// Waits until the process that has been started at a port answers.
pub(crate) fn answering(mut process: Process, host: &Namespace, port: u16) -> Result<Process> {
    let client = Client::of_any(host, ([127, 0, 0, 1], port).into());
    let what = format!("port {port} answers");
    try_within(Duration::from_secs(10), &what, || -> Result<Result<()>> {
        if let Err(ended) = process.running() {
            return Ok(Err(ended));
        }
        let answer = client.connect()?.ask(&Request::post("/", b"{}"))?;
        ensure!(
            answer.status == 200,
            "port {port} answers {}\n{}",
            answer.status,
            process.output()
        );
        Ok(Ok(()))
    })??;
    Ok(process)
}
