//! The command line's end of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, StatusCode};
use mirror_api::shadow::{self, AgentStatus};
use mirror_api::{CanaryChange, Change, Done, RolloutOrder, RolloutSummary, Status};
use mirror_rollout::record::Line;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ErrorBody;
use crate::http_client;

/// Longer than the daemon waits for its own loop, so that its words arrive.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a command did not come through.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("no daemon answers at {}: start it with `modelmirror run`, or name its `control_socket` with --control", socket.display())]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be opened.
    #[error("{}: {why}; run this as the user that the daemon runs as", socket.display())]
    Closed {
        /// The socket.
        socket: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// The daemon refused, with its words.
    #[error("{said}")]
    Refused {
        /// Whether there is no such service.
        unknown_service: bool,
        /// What it said.
        said: String,
    },
    /// The exchange broke off, or was not understood.
    #[error("the daemon at {} did not answer as expected: {why}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// How.
        why: String,
    },
}

/// Asks the daemon at one socket. One connection for each question.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the daemon at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// How things are, of one service or of all.
    ///
    /// # Errors
    /// When no daemon answers, or there is no such service.
    pub async fn status(&self, service: Option<&str>) -> Result<Status, ClientError> {
        let path = match service {
            Some(name) => format!("/v1/status?service={name}"),
            None => "/v1/status".to_owned(),
        };
        self.ask(Method::GET, &path, Bytes::new()).await
    }

    /// How the shadow agent at this socket is.
    ///
    /// # Errors
    /// When nobody answers, or it is no agent.
    pub async fn shadow_status(&self) -> Result<AgentStatus, ClientError> {
        self.ask(Method::GET, shadow::PATH, Bytes::new()).await
    }

    /// Changes a service's mirror.
    ///
    /// # Errors
    /// When no daemon answers, or it refuses.
    pub async fn mirror(&self, service: &str, change: Change) -> Result<Done, ClientError> {
        let body = serde_json::to_vec(&change).map_err(|error| self.broken(&error))?;
        let path = format!("/v1/services/{service}/mirror");
        self.ask(Method::POST, &path, body.into()).await
    }

    /// Changes a service's canary.
    ///
    /// # Errors
    /// When no daemon answers, or it refuses.
    pub async fn canary(&self, service: &str, change: CanaryChange) -> Result<Done, ClientError> {
        let body = serde_json::to_vec(&change).map_err(|error| self.broken(&error))?;
        let path = format!("/v1/services/{service}/canary");
        self.ask(Method::POST, &path, body.into()).await
    }

    /// Begins, changes or ends a service's rollout.
    ///
    /// # Errors
    /// When no daemon answers, or it refuses.
    pub async fn rollout(&self, service: &str, order: &RolloutOrder) -> Result<Done, ClientError> {
        let body = serde_json::to_vec(order).map_err(|error| self.broken(&error))?;
        let path = format!("/v1/services/{service}/rollout");
        self.ask(Method::POST, &path, body.into()).await
    }

    /// The record of one rollout, or of the service's last one, without what was seen each second.
    ///
    /// # Errors
    /// When no daemon answers, or there is no such rollout.
    pub async fn record(&self, service: &str, id: Option<&str>) -> Result<Vec<Line>, ClientError> {
        let path = match id {
            Some(id) => format!("/v1/services/{service}/rollout/record?id={id}"),
            None => format!("/v1/services/{service}/rollout/record"),
        };
        self.ask(Method::GET, &path, Bytes::new()).await
    }

    /// The rollouts that there were, of one service or of all, the last one first.
    ///
    /// # Errors
    /// When no daemon answers, or there is no such service.
    pub async fn rollouts(
        &self,
        service: Option<&str>,
    ) -> Result<Vec<RolloutSummary>, ClientError> {
        let path = match service {
            Some(name) => format!("/v1/rollouts?service={name}"),
            None => "/v1/rollouts".to_owned(),
        };
        self.ask(Method::GET, &path, Bytes::new()).await
    }

    /// Detaches everything.
    ///
    /// # Errors
    /// When no daemon answers, or it fails.
    pub async fn off(&self) -> Result<Done, ClientError> {
        self.ask(Method::POST, "/v1/off", Bytes::new()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(error))?;
        let exchange = self.exchange(stream, method, path, body);
        let (status, answer) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| self.broken(&"it took too long"))??;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|error| self.broken(&error));
        }
        let said = serde_json::from_slice(&answer).map_or_else(
            |_| format!("{status}: {}", String::from_utf8_lossy(&answer)),
            |body: ErrorBody| body.error,
        );
        Err(ClientError::Refused {
            unknown_service: status == StatusCode::NOT_FOUND,
            said,
        })
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "modelmirror")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(&error))?;
        http_client::ask(stream, request)
            .await
            .map_err(|error| self.broken(&error))
    }

    fn unreachable(&self, why: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match why.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon { socket }
            }
            _ => ClientError::Closed { socket, why },
        }
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            why: why.to_string(),
        }
    }
}
