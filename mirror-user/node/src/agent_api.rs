//! Asks an agent for its summary: `GET /v1/summary` where it listens, over TLS by both sides' keys.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use mirror_api::AgentAddress;
use mirror_api::summary::Summary;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::Mirror;
use mirror_base::http_client::{self, Broken};
use mirror_base::transport::frame::ALPN_API;
use mirror_base::transport::keys::{KeyFileError, PrivateKey, PublicKey};
use mirror_base::transport::tls::{self, Refusal};

/// How long an agent may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// We have no key.
    #[error(transparent)]
    NoKey(#[from] KeyFileError),
    /// Nobody listens, or nobody is there.
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    /// It took too long.
    #[error("does not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// One of us does not know the other's key.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Somebody else listens there, or another version.
    #[error("answers, but not with a summary: {0}")]
    NoSummary(Broken),
}

impl Error {
    /// A refusal hides behind an error of the stream, or behind what HTTP makes of that.
    fn of(error: Broken, other: impl FnOnce(Broken) -> Self) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error);
        while let Some(at) = cause {
            if let Some(refusal) = at.downcast_ref().and_then(Refusal::of) {
                return Self::Refused(refusal);
            }
            cause = at.source();
        }
        other(error)
    }
}

/// How an agent is spoken to.
#[derive(Clone, Debug)]
pub enum Access {
    /// By keys.
    Keys {
        /// Ours.
        own: PrivateKey,
        /// The agent's.
        agent: PublicKey,
    },
    /// In clear text (`insecure`).
    Clear,
}

impl Access {
    /// As the config says.
    ///
    /// # Errors
    /// When our key is needed and cannot be read.
    pub fn of(mirror: &Mirror, key_file: &Path) -> Result<Self, KeyFileError> {
        Ok(match mirror.agent_key {
            Some(agent) if !mirror.insecure => Self::Keys {
                own: PrivateKey::read(key_file)?,
                agent,
            },
            _ => Self::Clear,
        })
    }
}

/// The agent's figures since its start.
///
/// # Errors
/// When there is no answer within 2 s, or another one.
pub async fn summary(agent: &AgentAddress, access: &Access) -> Result<Summary, Error> {
    match tokio::time::timeout(PATIENCE, ask(agent, access)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Silent),
    }
}

async fn ask(agent: &AgentAddress, access: &Access) -> Result<Summary, Error> {
    let stream = TcpStream::connect((&*agent.host, agent.port))
        .await
        .map_err(Error::Unreachable)?;
    let request = Request::get("/v1/summary")
        .header("host", agent.to_string())
        .body(Full::<Bytes>::default())
        .map_err(|error| Error::NoSummary(error.into()))?;
    let answer = match access {
        Access::Clear => http_client::ask(stream, request).await,
        Access::Keys { own, agent } => {
            let config = tls::client_config(own, *agent, ALPN_API)
                .map_err(|error| Error::NoSummary(error.into()))?;
            let stream = TlsConnector::from(config)
                .connect(tls::server_name(), stream)
                .await
                .map_err(|error| Error::of(error.into(), Error::NoSummary))?;
            http_client::ask(stream, request).await
        }
    };
    let (status, body) = answer.map_err(|error| Error::of(error, Error::NoSummary))?;
    match status {
        StatusCode::OK => {
            serde_json::from_slice(&body).map_err(|error| Error::NoSummary(error.into()))
        }
        status => Err(Error::NoSummary(status.to_string().into())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::ServerConfig;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use mirror_agent::summary;
    use mirror_base::transport::tls::TrustedTaps;

    fn said() -> Summary {
        Summary {
            since: jiff::Timestamp::UNIX_EPOCH,
            time: jiff::Timestamp::UNIX_EPOCH,
            services: Vec::new(),
        }
    }

    /// An agent that takes one connection in clear text, or refuses one with keys.
    async fn agent(config: Option<Arc<ServerConfig>>) -> AgentAddress {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let router = summary::router(|| Some(said()));
            let Some(config) = config else {
                return summary::serve_connection(stream, router).await.unwrap();
            };
            let accepted = TlsAcceptor::from(config).accept(&mut stream).await;
            accepted.map(drop).unwrap_err();
            // What came meanwhile is read, so that closing does not overtake the alert.
            let _ = stream.read(&mut [0; 1024]).await;
        });
        address.into()
    }

    #[tokio::test]
    async fn an_agent_says_how_it_fares_to_who_it_knows() {
        let (own, agents) = (PrivateKey::of_test(), PrivateKey::of_test());
        let table = [(own.public(), "node".to_owned())].into();
        let config = tls::server_config(&agents, TrustedTaps::new(table, |_| ())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = AgentAddress {
            host: "localhost".to_owned(),
            port: listener.local_addr().unwrap().port(),
        };
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = TlsAcceptor::from(config).accept(stream).await.unwrap();
            let (_, connection) = stream.get_ref();
            assert_eq!(connection.alpn_protocol(), Some(ALPN_API));
            let router = summary::router(|| Some(said()));
            summary::serve_connection(stream, router).await.unwrap();
        });
        let agent = agents.public();
        let answer = summary(&address, &Access::Keys { own, agent }).await;
        assert_eq!(answer.unwrap(), said());
    }

    #[tokio::test]
    async fn who_is_not_known_is_told_so() {
        let (own, agents) = (PrivateKey::of_test(), PrivateKey::of_test());
        let nobody = || TrustedTaps::new([].into(), |_| ());
        let config = || Some(tls::server_config(&agents, nobody()).unwrap());
        let ask = async |key: PublicKey| {
            let address = agent(config()).await;
            let (own, agent) = (own.clone(), key);
            summary(&address, &Access::Keys { own, agent }).await
        };
        let answer = ask(agents.public()).await;
        let unknown = matches!(answer, Err(Error::Refused(Refusal::Unknown)));
        assert!(unknown, "{answer:?}");
        let answer = ask(own.public()).await;
        let Err(Error::Refused(Refusal::OtherAgent { shown, trusted })) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((shown, trusted), (agents.public(), own.public()));
    }

    #[tokio::test]
    async fn clear_text_is_for_those_who_both_say_so() {
        let address = agent(None).await;
        let answer = summary(&address, &Access::Clear).await;
        assert_eq!(answer.unwrap(), said());

        let (own, agents) = (PrivateKey::of_test(), PrivateKey::of_test());
        let nobody = TrustedTaps::new([].into(), |_| ());
        let config = tls::server_config(&agents, nobody).unwrap();
        let address = agent(Some(config)).await;
        let answer = summary(&address, &Access::Clear).await;
        assert!(matches!(answer, Err(Error::NoSummary(_))), "{answer:?}");

        let address = agent(None).await;
        let agent = agents.public();
        let answer = summary(&address, &Access::Keys { own, agent }).await;
        assert!(matches!(answer, Err(Error::NoSummary(_))), "{answer:?}");
    }
}
