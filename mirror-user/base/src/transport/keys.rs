//! A host's key: a private half in a file, and a public half that the other side names in its config,
//! as with WireGuard and SSH. Ed25519 (RFC 8032).

use std::fmt;
use std::fs::{DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::SigningKey;
use serde::{Deserialize, Serialize};

use crate::private_file;

/// What stands before the 32 bytes of a public key in its SubjectPublicKeyInfo (RFC 8410, 4).
const PUBLIC_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// What stands before the 32 bytes of a private key in PKCS#8, version 1 (RFC 8410, 7).
const PRIVATE_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Why a text is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    /// It is the other half, or its file.
    #[error("this is a private key, which stays on its host")]
    Private,
    /// Something else.
    #[error("a public key is 32 bytes in base64, 44 characters that end with =")]
    NoKey,
}

/// The public half of a host's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// As TLS carries it: a SubjectPublicKeyInfo in DER.
    pub fn to_spki(self) -> SubjectPublicKeyInfoDer<'static> {
        [&PUBLIC_PREFIX[..], &self.0].concat().into()
    }

    /// The key in a SubjectPublicKeyInfo, if it is one of Ed25519.
    pub fn of_spki(der: &[u8]) -> Option<Self> {
        let key = der.strip_prefix(&PUBLIC_PREFIX)?;
        key.try_into().ok().map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        if text.contains("PRIVATE KEY") {
            return Err(NotAKey::Private);
        }
        let bytes = STANDARD.decode(text).map_err(|_| NotAKey::NoKey)?;
        if bytes.starts_with(&PRIVATE_PREFIX) {
            return Err(NotAKey::Private);
        }
        bytes.try_into().map(Self).map_err(|_| NotAKey::NoKey)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// Why there is no private key, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct KeyFileError {
    /// What is wrong, and with which file.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl KeyFileError {
    fn new(what: String, remedy: impl Into<String>) -> Self {
        let remedy = remedy.into();
        Self { what, remedy }
    }

    fn of_io(file: &Path, error: &io::Error) -> Self {
        let shown = file.display();
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(
                format!("there is no key in {shown}"),
                format!("make one with `modelmirror keys new --key-file {shown}`"),
            ),
            io::ErrorKind::PermissionDenied => Self::new(
                format!("{shown}: {error}"),
                "run as the user whose file it is: root, most often",
            ),
            _ => Self::new(format!("{shown}: {error}"), "name a file that can be used"),
        }
    }

    fn not_a_key(file: &Path) -> Self {
        let shown = file.display();
        let what = format!("{shown} holds no Ed25519 key in PEM (PKCS#8)");
        let remedy = "name the file that `modelmirror keys new` has made, or make one with `openssl genpkey -algorithm ed25519`";
        Self::new(what, remedy)
    }
}

/// What becomes of a key that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and there is no new one.
    Keep,
    /// The new one replaces it.
    Replace,
}

/// A host's key.
#[derive(Clone)]
pub struct PrivateKey {
    signing: Arc<dyn SigningKey>,
    public: PublicKey,
}

impl fmt::Debug for PrivateKey {
    /// Keeps the private half out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// Reads a file: PKCS#8 in PEM, as `modelmirror keys new` and `openssl genpkey` write it.
    ///
    /// # Errors
    /// When it cannot be read, holds no Ed25519 key, or others may read it: see [`private_file`].
    pub fn read(file: &Path) -> Result<Self, KeyFileError> {
        let refuse = |error: io::Error| KeyFileError::of_io(file, &error);
        let about = std::fs::metadata(file).map_err(refuse)?;
        if let Some(exposed) = private_file::exposed(&about) {
            let shown = file.display();
            let what = format!("{shown} {exposed}");
            let remedy = format!("run `chmod 600 {shown}`");
            return Err(KeyFileError::new(what, remedy));
        }
        let pem = std::fs::read(file).map_err(refuse)?;
        PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .ok()
            .and_then(|der| Self::of_der(&der))
            .ok_or_else(|| KeyFileError::not_a_key(file))
    }

    /// Makes a key and writes it to a file that only its user may read. Folders on the way are made
    /// for this user alone.
    ///
    /// # Errors
    /// When there is a file already, unless that is to be replaced, or it cannot be written.
    pub fn create(file: &Path, existing: Existing) -> Result<Self, KeyFileError> {
        let der = new_der();
        let key = Self::of_der(&der).ok_or_else(|| KeyFileError::not_a_key(file))?;
        write(file, &pem(&der), existing).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists if file.exists() => {
                let shown = file.display();
                KeyFileError::new(
                    format!("there is a key in {shown} already, and others may trust it"),
                    format!(
                        "`modelmirror keys show --key-file {shown}` prints its public half; to put another in its place, add --replace"
                    ),
                )
            }
            // The folder that the file is to be made in.
            io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists => KeyFileError::new(
                format!("{}: {error}", file.display()),
                "name a file in a folder that can be made",
            ),
            _ => KeyFileError::of_io(file, &error),
        })?;
        Ok(key)
    }

    /// A key that is kept nowhere.
    #[cfg(any(test, feature = "fixtures"))]
    pub fn of_test() -> Self {
        Self::of_der(&new_der()).expect("a fresh key is one")
    }

    fn of_der(der: &PrivatePkcs8KeyDer<'_>) -> Option<Self> {
        let signing = ring::sign::any_eddsa_type(der).ok()?;
        let public = PublicKey::of_spki(&signing.public_key()?)?;
        Some(Self { signing, public })
    }

    /// What others know it by.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// What TLS signs with.
    pub(super) fn signing(&self) -> Arc<dyn SigningKey> {
        Arc::clone(&self.signing)
    }
}

fn new_der() -> PrivatePkcs8KeyDer<'static> {
    let mut der = PRIVATE_PREFIX.to_vec();
    der.resize(PRIVATE_PREFIX.len() + 32, 0);
    let random = ring::default_provider().secure_random;
    #[expect(
        clippy::expect_used,
        reason = "the kernel's getrandom has no way to fail here, and a key of zeros is none"
    )]
    random
        .fill(&mut der[PRIVATE_PREFIX.len()..])
        .expect("the kernel gives random bytes");
    der.into()
}

fn pem(der: &PrivatePkcs8KeyDer<'_>) -> String {
    let body = STANDARD.encode(der.secret_pkcs8_der());
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

/// Writes beside and renames: there is never half a key.
fn write(file: &Path, pem: &str, existing: Existing) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder)?;
    let mut new = tempfile::Builder::new()
        .prefix(".key")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    new.write_all(pem.as_bytes())?;
    new.as_file().sync_all()?;
    match existing {
        Existing::Keep => new.persist_noclobber(file)?,
        Existing::Replace => new.persist(file)?,
    };
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, 10.3, and the public key that belongs to it.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";
    const PUBLIC: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

    fn put(file: &Path, text: &str, mode: u32) {
        std::fs::write(file, text).unwrap();
        std::fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_of_the_rfc_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        put(&file, PEM, 0o600);
        let key = PrivateKey::read(&file).unwrap();
        assert_eq!(key.public().to_string(), PUBLIC);
        assert_eq!(PUBLIC.parse(), Ok(key.public()));
        assert_eq!(
            format!("{key:?}"),
            format!("PrivateKey {{ public: PublicKey({PUBLIC}), .. }}")
        );
    }

    #[test]
    fn a_new_key_is_for_its_user_alone_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        let file = folder.join("key");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let key = PrivateKey::create(&file, Existing::Keep).unwrap();
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        assert_eq!(PrivateKey::read(&file).unwrap().public(), key.public());

        let refused = PrivateKey::create(&file, Existing::Keep).unwrap_err();
        assert!(refused.what.contains("already"), "{refused}");
        assert!(refused.remedy.contains("keys show"), "{refused}");
        assert_eq!(PrivateKey::read(&file).unwrap().public(), key.public());

        let other = PrivateKey::create(&file, Existing::Replace).unwrap();
        assert_ne!(other.public(), key.public());
        assert_eq!(PrivateKey::read(&file).unwrap().public(), other.public());
        assert_eq!(mode(&file), 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);

        // A file where a folder should be.
        let error = PrivateKey::create(&file.join("key"), Existing::Keep).unwrap_err();
        assert!(error.remedy.contains("folder that can be made"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let check = |expected: &str, remedy: &str| {
            let error = PrivateKey::read(&file).unwrap_err();
            assert!(error.what.contains(expected), "{error}");
            assert!(error.what.contains(file.to_str().unwrap()), "{error}");
            assert!(error.remedy.contains(remedy), "{error}");
        };
        check("there is no key", "keys new");
        put(&file, "secret", 0o600);
        check("no Ed25519 key", "keys new");
        // Cut short.
        put(&file, &PEM.replace("EdVhC", ""), 0o600);
        check("no Ed25519 key", "keys new");
        put(&file, PEM, 0o644);
        check("mode 0644", "chmod 600");
        put(&file, PEM, 0o640);
        check("open to its group (mode 0640)", "chmod 600");
    }

    #[test]
    fn a_public_key_is_44_characters() {
        for text in [
            "",
            "x",
            &PUBLIC[..43],
            &PUBLIC[1..],
            &format!("{PUBLIC}="),
            "ssh-ed25519 AAAA",
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(NotAKey::NoKey), "{text:?}");
        }
        let body = PEM.lines().nth(1).unwrap();
        for text in [PEM, body] {
            assert_eq!(text.parse::<PublicKey>(), Err(NotAKey::Private), "{text:?}");
        }
        let json = format!("\"{PUBLIC}\"");
        let key: PublicKey = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&key).unwrap(), json);
    }
}
