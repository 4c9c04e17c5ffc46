//! The door for those who prove themselves by a key: TLS, and the name that the config gives the key.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::door::{Accept, Accepted, Caller, OpenDoor, Protocol, first_bytes};
use super::error::{Refusal, Refused};
use crate::config;
use mirror_base::transport::frame::{ALPN_API, ALPN_TAP, PREFACE};
use mirror_base::transport::keys::{PrivateKey, PublicKey};
use mirror_base::transport::tls::{self, TrustedTaps};

/// What every TLS connection begins with: a record of a handshake.
const TLS_HANDSHAKE: u8 = 22;

/// Lets in those whose keys the config names; and in clear text, where that is allowed, others.
pub(crate) struct KeyedDoor {
    acceptor: TlsAcceptor,
    taps: Arc<TrustedTaps>,
    open: Option<OpenDoor>,
}

impl KeyedDoor {
    /// Shows `own`, and lets in `taps`; those that come without TLS are for `open`.
    ///
    /// # Errors
    /// When rustls does not take it.
    pub(crate) fn new(
        own: &PrivateKey,
        taps: &[config::Tap],
        open: Option<OpenDoor>,
    ) -> Result<Self, rustls::Error> {
        let names: BTreeMap<_, _> = taps.iter().map(|tap| (tap.key, tap.name.clone())).collect();
        // Who is refused is counted with the connection.
        let taps = Arc::new(TrustedTaps::new(names, |_: PublicKey| {}));
        let acceptor = tls::server_config(own, Arc::clone(&taps))?.into();
        Ok(Self {
            acceptor,
            taps,
            open,
        })
    }

    async fn encrypted(&self, stream: TcpStream) -> Result<Caller, Refused> {
        let mut stream = self.acceptor.accept(stream).await.map_err(refused)?;
        let connection = stream.get_ref().1;
        let key = tls::peer_key(connection);
        let name = key.and_then(|key| self.taps.name(key));
        let name = name
            .ok_or_else(|| Refusal::UnknownKey.because("its key no longer belongs to a [[tap]]"))?;
        let protocol = match connection.alpn_protocol() {
            Some(ALPN_TAP) => Protocol::Tap,
            Some(ALPN_API) => Protocol::Api,
            _ => return Err(Refusal::BadPreface.because("it names no protocol (ALPN)")),
        };
        if protocol == Protocol::Tap && first_bytes(&mut stream).await? != PREFACE {
            return Err(Refusal::BadPreface.because("it does not begin as a tap does"));
        }
        Ok(Caller {
            stream: Box::new(stream),
            name,
            protocol,
        })
    }
}

impl Accept for KeyedDoor {
    fn accept(&self, stream: TcpStream, peer: SocketAddr) -> Accepted<'_> {
        Box::pin(async move {
            let mut first = [0];
            let seen = stream.peek(&mut first).await;
            if seen.map_err(|error| Refusal::BadPreface.because(error))? == 0 {
                return Err(Refusal::BadPreface.because("it closed without a byte"));
            }
            if first != [TLS_HANDSHAKE] {
                return match &self.open {
                    Some(open) => open.accept(stream, peer).await,
                    None => Err(Refusal::ClearText.because("clear text, and `insecure` is off")),
                };
            }
            self.encrypted(stream).await
        })
    }
}

fn refused(error: io::Error) -> Refused {
    match tls::Refusal::of(&error) {
        Some(tls::Refusal::Unknown) => Refusal::UnknownKey
            .because("the node rejects this agent's key: its config has another `agent_key`"),
        Some(refusal) => Refusal::UnknownKey.because(refusal),
        None => Refusal::BadTls.because(error),
    }
}
