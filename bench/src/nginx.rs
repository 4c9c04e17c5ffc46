//! Debian's nginx: the model in production, the model in the shadow, and the proxy that mirrors.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Client, Namespace, Process, Request, try_within};

/// Where models answer.
pub(crate) const MODEL_PORT: u16 = 8000;

/// Where the proxy answers.
pub(crate) const PROXY_PORT: u16 = 8001;

/// A model of this version, which answers the same to everything.
pub(crate) fn model(host: &Namespace, folder: &Path, version: &str) -> Result<Process> {
    let answer = serde_json::json!({
        "model_name": "digits",
        "model_version": version,
        "outputs": [{
            "name": "probabilities", "datatype": "FP32", "shape": [1, 10],
            "data": [0.01, 0.01, 0.01, 0.91, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01],
        }],
    });
    let server = format!(
        "server {{ listen {MODEL_PORT}; default_type application/json; location / {{ return 200 '{answer}'; }} }}"
    );
    start(host, folder, version, &server, MODEL_PORT)
}

/// A proxy in front of the model that sends every request to the shadow too.
pub(crate) fn mirroring_proxy(host: &Namespace, folder: &Path, shadow: &str) -> Result<Process> {
    let forward = "proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let server = format!(
        "upstream production {{ server 127.0.0.1:{MODEL_PORT}; keepalive 64; }}
         upstream shadow {{ server {shadow}:{MODEL_PORT}; keepalive 64; }}
         server {{
             listen {PROXY_PORT};
             location / {{ mirror /mirror; proxy_pass http://production; {forward} }}
             location = /mirror {{ internal; proxy_pass http://shadow$request_uri; {forward} }}
         }}"
    );
    start(host, folder, "proxy", &server, PROXY_PORT)
}

/// Starts one process of nginx, and waits until it answers.
fn start(host: &Namespace, folder: &Path, name: &str, server: &str, port: u16) -> Result<Process> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).context("cannot make a folder for nginx")?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr error;
         events {{ worker_connections 4096; }}
         http {{
             access_log off; {temporary}
             tcp_nodelay on; keepalive_requests 1000000000; client_body_buffer_size 64k;
             {server}
         }}\n"
    );
    fs::write(folder.join("nginx.conf"), config).context("cannot write nginx.conf")?;
    let mut command = host.command("nginx");
    command.arg("-p").arg(&folder);
    command.args(["-c", "nginx.conf", "-e", "stderr"]);
    let mut process = host.spawn(&format!("nginx {name}"), command)?;
    let client = Client::of_any(host, ([127, 0, 0, 1], port).into());
    try_within(
        Duration::from_secs(10),
        "nginx answers",
        || -> Result<Result<()>> {
            if let Err(ended) = process.running() {
                return Ok(Err(ended));
            }
            let answer = client.connect()?.ask(&Request::post("/", b"{}"))?;
            ensure!(
                answer.status == 200,
                "nginx {name} answers {}",
                answer.status
            );
            Ok(Ok(()))
        },
    )??;
    Ok(process)
}
