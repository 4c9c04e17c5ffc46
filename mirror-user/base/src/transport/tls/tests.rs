use std::io::{Read as _, Write as _};
use std::sync::Mutex;

use rustls::{ClientConnection, ProtocolVersion, ServerConnection};

use super::*;

/// An agent that knows some taps, and the keys that it has refused.
struct Agent {
    key: PrivateKey,
    config: Arc<ServerConfig>,
    taps: Arc<TrustedTaps>,
    refused: Arc<Mutex<Vec<PublicKey>>>,
}

impl Agent {
    fn knowing(taps: &[&PrivateKey]) -> Self {
        let key = PrivateKey::of_test();
        let refused = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&refused);
        let note = move |key| noted.lock().unwrap().push(key);
        let taps = Arc::new(TrustedTaps::new(table(taps), note));
        Self {
            config: server_config(&key, Arc::clone(&taps)).unwrap(),
            key,
            taps,
            refused,
        }
    }

    fn accept(&self) -> ServerConnection {
        ServerConnection::new(Arc::clone(&self.config)).unwrap()
    }
}

fn table(taps: &[&PrivateKey]) -> BTreeMap<PublicKey, String> {
    let named = |(index, tap): (usize, &&PrivateKey)| (tap.public(), format!("tap-{index}"));
    taps.iter().enumerate().map(named).collect()
}

fn connect(config: Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config, server_name()).unwrap()
}

fn tap(key: &PrivateKey, expected: PublicKey) -> ClientConnection {
    connect(client_config(key, expected, ALPN_TAP).unwrap())
}

/// What one side has to send goes to the other; says what was sent.
fn carry(from: &mut dyn Side, to: &mut dyn Side) -> (Vec<u8>, Result<(), Error>) {
    let mut bytes = Vec::new();
    while from.take(&mut bytes) > 0 {}
    let result = to.give(&bytes);
    (bytes, result)
}

trait Side {
    fn take(&mut self, bytes: &mut Vec<u8>) -> usize;
    fn give(&mut self, bytes: &[u8]) -> Result<(), Error>;
}

macro_rules! side {
    ($connection:ty) => {
        impl Side for $connection {
            fn take(&mut self, bytes: &mut Vec<u8>) -> usize {
                self.write_tls(bytes).unwrap()
            }

            fn give(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
                while !bytes.is_empty() {
                    self.read_tls(&mut bytes).unwrap();
                    self.process_new_packets()?;
                }
                Ok(())
            }
        }
    };
}

side!(ClientConnection);
side!(ServerConnection);

/// Runs a handshake until both are done or one refuses; what client and server say of it, and all
/// that the client has sent.
fn handshake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> (Result<(), Error>, Result<(), Error>, Vec<u8>) {
    let mut sent = Vec::new();
    let (mut at_client, mut at_server) = (Ok(()), Ok(()));
    for _ in 0..4 {
        let (bytes, result) = carry(client, server);
        sent.extend(bytes);
        at_server = at_server.and(result);
        at_client = at_client.and(carry(server, client).1);
    }
    (at_client, at_server, sent)
}

#[test]
fn two_that_know_each_other_talk() {
    let key = PrivateKey::of_test();
    let agent = Agent::knowing(&[&key]);
    let (mut client, mut server) = (tap(&key, agent.key.public()), agent.accept());
    let (at_client, at_server, _) = handshake(&mut client, &mut server);
    assert_eq!((at_client, at_server), (Ok(()), Ok(())));
    assert_eq!(peer_key(&server), Some(key.public()));
    assert_eq!(peer_key(&client), Some(agent.key.public()));
    assert_eq!(agent.taps.name(key.public()).as_deref(), Some("tap-0"));
    assert_eq!(server.alpn_protocol(), Some(ALPN_TAP));
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.tls13_tickets_received(), 0);

    client.writer().write_all(b"copies").unwrap();
    carry(&mut client, &mut server).1.unwrap();
    let mut received = [0; 6];
    server.reader().read_exact(&mut received).unwrap();
    assert_eq!(&received, b"copies");
    assert_eq!(agent.refused.lock().unwrap().len(), 0);
}

#[test]
fn an_agent_with_another_key_is_named() {
    let key = PrivateKey::of_test();
    let agent = Agent::knowing(&[&key]);
    let trusted = PrivateKey::of_test().public();
    let (mut client, mut server) = (tap(&key, trusted), agent.accept());
    let (at_client, at_server, _) = handshake(&mut client, &mut server);
    let shown = agent.key.public();
    let refusal = Refusal::of_tls(&at_client.unwrap_err());
    assert_eq!(refusal, Some(Refusal::OtherAgent { shown, trusted }));
    assert!(at_server.is_err());
    let said = Refusal::OtherAgent { shown, trusted }.to_string();
    assert!(said.contains(&shown.to_string()) && said.contains(&trusted.to_string()));
}

#[test]
fn a_tap_that_is_not_known_is_refused_and_told() {
    let (known, key) = (PrivateKey::of_test(), PrivateKey::of_test());
    let agent = Agent::knowing(&[&known]);
    let refused = || {
        let (mut client, mut server) = (tap(&key, agent.key.public()), agent.accept());
        let (at_client, at_server, _) = handshake(&mut client, &mut server);
        let of = |result: Result<(), Error>| result.err().and_then(|e| Refusal::of_tls(&e));
        (of(at_client), of(at_server))
    };
    let unknown = Some(Refusal::UnknownTap(key.public()));
    assert_eq!(refused(), (Some(Refusal::Unknown), unknown));
    assert_eq!(*agent.refused.lock().unwrap(), [key.public()]);

    // A reload that names it holds for the next connection.
    agent.taps.replace(table(&[&key]));
    assert_eq!(refused(), (None, None));
}

#[test]
fn nobody_speaks_with_the_key_of_another() {
    let (known, thief) = (PrivateKey::of_test(), PrivateKey::of_test());
    let agent = Agent::knowing(&[&known]);
    let mut config =
        Arc::unwrap_or_clone(client_config(&thief, agent.key.public(), ALPN_TAP).unwrap());
    let shown = CertificateDer::from(known.public().to_spki().to_vec());
    let stolen = Arc::new(CertifiedKey::new(vec![shown], thief.signing()));
    config.client_auth_cert_resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(stolen));
    let (mut client, mut server) = (connect(Arc::new(config)), agent.accept());
    let (_, at_server, _) = handshake(&mut client, &mut server);
    let bad = CertificateError::BadSignature;
    assert_eq!(at_server, Err(Error::InvalidCertificate(bad)));
}

#[test]
fn who_shows_no_key_is_refused() {
    let agent = Agent::knowing(&[&PrivateKey::of_test()]);
    let expected = agent.key.public();
    let plain = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AgentVerifier { expected }))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_TAP.to_vec()];
        let (mut client, mut server) = (connect(Arc::new(config)), agent.accept());
        let (_, at_server, _) = handshake(&mut client, &mut server);
        assert!(server.is_handshaking());
        at_server.unwrap_err()
    };
    let error = plain(&[&rustls::version::TLS13]);
    assert_eq!(Refusal::of_tls(&error), Some(Refusal::NoKey), "{error}");
    // The old version is not spoken.
    let error = plain(&[&rustls::version::TLS12]);
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
}

#[test]
fn other_protocols_are_refused() {
    let key = PrivateKey::of_test();
    let agent = Agent::knowing(&[&key]);
    let config = client_config(&key, agent.key.public(), b"h2").unwrap();
    let (_, at_server, _) = handshake(&mut connect(config), &mut agent.accept());
    assert_eq!(at_server, Err(Error::NoApplicationProtocol));
}

#[test]
fn what_was_recorded_says_nothing_a_second_time() {
    let key = PrivateKey::of_test();
    let agent = Agent::knowing(&[&key]);
    let (mut client, mut server) = (tap(&key, agent.key.public()), agent.accept());
    let (_, at_server, mut recorded) = handshake(&mut client, &mut server);
    at_server.unwrap();
    client.writer().write_all(b"copies").unwrap();
    recorded.extend(carry(&mut client, &mut server).0);

    let mut server = agent.accept();
    let replayed = server.give(&recorded);
    assert_eq!(replayed, Err(Error::DecryptError));
    assert!(server.is_handshaking());
    assert_eq!(peer_key(&server), None);
    let read = server.reader().read(&mut [0; 64]);
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}

#[test]
fn a_refusal_is_found_behind_an_error_of_a_stream() {
    let refusal = Refusal::UnknownTap(PrivateKey::of_test().public());
    let error = io::Error::new(io::ErrorKind::InvalidData, Error::from(refusal));
    assert_eq!(Refusal::of(&error), Some(refusal));
    assert_eq!(Refusal::of(&io::ErrorKind::TimedOut.into()), None);
}
