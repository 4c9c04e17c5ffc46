//! TLS 1.3 (RFC 8446) by raw public keys (RFC 7250): both sides prove that they have the private half
//! of a key that the other one names in its config. There are no names, authorities and dates.
//!
//! Nothing is resumed and there is no early data, so that nothing recorded can be said a second time.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, CommonState,
    DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, ServerConfig,
    SignatureScheme,
};

use super::frame::{ALPN_API, ALPN_TAP};
use super::keys::{PrivateKey, PublicKey};

/// Ciphers of TLS 1.3 alone. AES with 128 bits goes first: it takes the least CPU time where
/// processors have instructions for it, and the node pays for every byte that it sends.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = ring::default_provider();
    let suites = &mut provider.cipher_suites;
    suites.retain(|suite| suite.tls13().is_some());
    suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
});

/// Whose keys an agent takes. Asked at every handshake: a table that is replaced holds for the next.
pub trait Trust: fmt::Debug + Send + Sync + 'static {
    /// Whether it is the key of a tap that may connect.
    fn knows(&self, key: PublicKey) -> bool;

    /// This key was refused.
    fn refused(&self, key: PublicKey);
}

/// Called with every key that is refused.
type OnRefused = Box<dyn Fn(PublicKey) + Send + Sync>;

/// The taps that an agent's config names.
pub struct TrustedTaps {
    names: RwLock<BTreeMap<PublicKey, String>>,
    on_refused: OnRefused,
}

impl TrustedTaps {
    /// A table of names by key.
    pub fn new(
        names: BTreeMap<PublicKey, String>,
        on_refused: impl Fn(PublicKey) + Send + Sync + 'static,
    ) -> Self {
        Self {
            names: RwLock::new(names),
            on_refused: Box::new(on_refused),
        }
    }

    /// Another table, from the next handshake on.
    pub fn replace(&self, names: BTreeMap<PublicKey, String>) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// What the config calls the tap with this key, if it is in there.
    pub fn name(&self, key: PublicKey) -> Option<String> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&key).cloned()
    }
}

impl fmt::Debug for TrustedTaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustedTaps")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Trust for TrustedTaps {
    fn knows(&self, key: PublicKey) -> bool {
        self.name(key).is_some()
    }

    fn refused(&self, key: PublicKey) {
        (self.on_refused)(key);
    }
}

impl<T: Trust> Trust for Arc<T> {
    fn knows(&self, key: PublicKey) -> bool {
        (**self).knows(key)
    }

    fn refused(&self, key: PublicKey) {
        (**self).refused(key);
    }
}

/// Why a handshake between two keys failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The agent is another one than the config means.
    #[error("the agent shows the key {shown}, and the config trusts {trusted} (`agent_key`)")]
    OtherAgent {
        /// The key that it shows.
        shown: PublicKey,
        /// The key that the config trusts.
        trusted: PublicKey,
    },
    /// The agent does not know this key; on its side.
    #[error("the key {0} belongs to no [[tap]] of the config")]
    UnknownTap(PublicKey),
    /// The agent does not know our key; on the tap's side.
    #[error("the agent does not know this node's key")]
    Unknown,
    /// The other side shows no raw public key of Ed25519: it is no modelmirror.
    #[error("the peer shows no Ed25519 key: it is not modelmirror, or has no key")]
    NoKey,
}

impl Refusal {
    /// Finds the refusal behind an error of a TLS stream, if it is one.
    pub fn of(error: &io::Error) -> Option<Self> {
        Self::of_tls(error.get_ref()?.downcast_ref()?)
    }

    /// Finds the refusal behind an error of rustls, if it is one.
    pub fn of_tls(error: &Error) -> Option<Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                other.0.downcast_ref::<Self>().copied()
            }
            Error::AlertReceived(AlertDescription::CertificateUnknown) => Some(Self::Unknown),
            Error::NoCertificatesPresented
            | Error::PeerIncompatible(PeerIncompatible::IncorrectCertificateTypeExtension) => {
                Some(Self::NoKey)
            }
            other => other.source()?.downcast_ref().and_then(Self::of_tls),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

/// What a tap connects with: it shows `own` and takes an agent with the key `expected`.
///
/// # Errors
/// When rustls does not take it.
pub fn client_config(
    own: &PrivateKey,
    expected: PublicKey,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Arc::new(AgentVerifier { expected });
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(
            own,
        ))));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The name that a client's handshake asks for: none, since keys are what counts.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())
}

/// What an agent accepts with: it shows `own` and takes taps that `trust` knows.
///
/// # Errors
/// When rustls does not take it.
pub fn server_config(own: &PrivateKey, trust: impl Trust) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(TapVerifier { trust }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(
            own,
        ))));
    config.alpn_protocols = vec![ALPN_TAP.to_vec(), ALPN_API.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The key that the other side has proven to have, after the handshake.
pub fn peer_key(connection: &CommonState) -> Option<PublicKey> {
    match connection.peer_certificates()? {
        [key] => PublicKey::of_spki(key),
        _ => None,
    }
}

fn certified(own: &PrivateKey) -> Arc<CertifiedKey> {
    // rustls carries raw public keys in its type for certificates.
    let key = CertificateDer::from(own.public().to_spki().to_vec());
    Arc::new(CertifiedKey::new(vec![key], own.signing()))
}

fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    &PROVIDER.signature_verification_algorithms
}

fn shown(entity: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<PublicKey, Refusal> {
    let key = PublicKey::of_spki(entity).filter(|_| others.is_empty());
    key.ok_or(Refusal::NoKey)
}

fn verify(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signature, algorithms())
}

/// TLS 1.2 is not offered, and not taken.
fn too_old() -> Error {
    PeerIncompatible::Tls12NotOffered.into()
}

/// Takes the one agent that the config means.
#[derive(Debug)]
struct AgentVerifier {
    expected: PublicKey,
}

impl ServerCertVerifier for AgentVerifier {
    fn verify_server_cert(
        &self,
        entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = shown(entity, others)?;
        if shown == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        let trusted = self.expected;
        Err(Refusal::OtherAgent { shown, trusted }.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Takes the taps that the config names.
#[derive(Debug)]
struct TapVerifier<T> {
    trust: T,
}

impl<T: Trust> ClientCertVerifier for TapVerifier<T> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let shown = shown(entity, others)?;
        if self.trust.knows(shown) {
            return Ok(ClientCertVerified::assertion());
        }
        self.trust.refused(shown);
        Err(Refusal::UnknownTap(shown).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
