//! Asks an agent for its summary: `GET /v1/summary` on its `api`, with the token of `token_file`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use tokio::net::TcpStream;

use crate::config::AgentApi;
use crate::http_client::{self, Broken};
use crate::shadow::summary::Summary;

/// How long an agent may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens, or nobody is there.
    #[error("cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    /// It took too long.
    #[error("does not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// The agent has another token.
    #[error("does not take our token")]
    WrongToken,
    /// Somebody else listens there, or another version.
    #[error("answers, but not with a summary: {0}")]
    NoSummary(Broken),
}

/// The agent's figures since its start.
///
/// # Errors
/// When there is no answer within 2 s, or another one.
pub async fn summary(api: &AgentApi) -> Result<Summary, Error> {
    match tokio::time::timeout(PATIENCE, ask(api)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Silent),
    }
}

async fn ask(api: &AgentApi) -> Result<Summary, Error> {
    let broken = |error: hyper::http::Error| Error::NoSummary(error.into());
    let uri: Uri = format!("{}/v1/summary", api.base)
        .parse()
        .map_err(|error| Error::NoSummary(Box::new(error)))?;
    let host = uri.host().unwrap_or_default();
    // An IPv6 address stands in brackets there, which the resolver does not know.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((bare, port)).await?;
    let request = Request::get("/v1/summary")
        .header("host", format!("{host}:{port}"))
        .header("authorization", format!("Bearer {}", api.token.value))
        .body(Full::<Bytes>::default())
        .map_err(broken)?;
    let (status, body) = http_client::ask(stream, request)
        .await
        .map_err(Error::NoSummary)?;
    match status {
        StatusCode::OK => {
            serde_json::from_slice(&body).map_err(|error| Error::NoSummary(error.into()))
        }
        StatusCode::UNAUTHORIZED => Err(Error::WrongToken),
        status => Err(Error::NoSummary(status.to_string().into())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Token;
    use crate::shadow::summary;

    /// What the agent with the token "right" answers to somebody with `token`.
    async fn asked(token: &str) -> Result<Summary, Error> {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let time = jiff::Timestamp::UNIX_EPOCH;
        let say = move || Summary {
            since: time,
            time,
            services: Vec::new(),
        };
        let serving = tokio::spawn(async move { summary::serve(listener, "right", say).await });
        let token = Token {
            file: "/token".into(),
            value: token.to_owned(),
        };
        let answer = summary(&AgentApi { base, token }).await;
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn an_agent_says_how_it_fares_to_who_has_its_token() {
        assert_eq!(asked("right").await.unwrap().services, []);
        assert!(matches!(asked("wrong").await, Err(Error::WrongToken)));
    }
}
