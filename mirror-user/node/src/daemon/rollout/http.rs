//! What both callers share: one client, and answers of bounded size.

use std::error::Error;

use reqwest::{Client, ClientBuilder, Response, redirect};

/// A client for `http://` and `https://`, with the system's certificates. It follows no redirect and
/// knows no proxy: what was configured is called, or nothing.
///
/// # Errors
/// When TLS cannot be set up at all.
pub(super) fn client() -> reqwest::Result<Client> {
    // Another provider that was installed before will do as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    builder().build().or_else(|error| {
        let why = innermost(&error);
        tracing::warn!("https:// cannot be called: {why}; install the system's CA certificates");
        builder().tls_certs_only([]).build()
    })
}

fn builder() -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("modelmirror/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
}

/// The answer's body as text, cut after so many bytes.
///
/// # Errors
/// When the exchange breaks off before.
pub(super) async fn text(mut response: Response, most: usize) -> reqwest::Result<String> {
    let mut body = Vec::new();
    while body.len() < most {
        match response.chunk().await? {
            Some(chunk) => body.extend_from_slice(&chunk[..chunk.len().min(most - body.len())]),
            None => break,
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Why a call failed, without the address, which may hold a secret.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match cause.downcast_ref::<reqwest::Error>() {
        Some(own) if own.is_timeout() => "it took too long".to_owned(),
        Some(_) => "the exchange broke off".to_owned(),
        None => cause.to_string(),
    }
}

/// The first characters of what was answered, in one line.
pub(super) fn beginning(text: &str) -> String {
    const SHOWN: usize = 200;
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN).collect()
}
