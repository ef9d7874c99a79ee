//! The side of TLS that opens connections: whom it trusts, whose name it checks, what it shows of itself.
//!
//! The certificate has to name the domain that the caller means (RFC 5922 section 7.2, of which the names of type DNS are
//! looked at, and IP addresses where no domain is given), and to lead to one of the roots. A connection is kept for the
//! domain that it was opened for: what is meant for another domain at the same address gets another connection.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{UnbufferedClientConnection, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::tls::{Session, Tls, TlsFiles, certificates, wrong_file};

/// Where systems keep the roots they trust, in one file: Debian, Fedora, SUSE, BSD.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What of the peer's certificate has to be right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// It leads to a root, and names the domain.
    #[default]
    Domain,
    /// It leads to a root, whomever it names.
    Chain,
    /// Nothing: against eavesdroppers only, not against who stands in between.
    Off,
}

/// How peers are met over TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsClientOptions {
    /// A file in PEM with the roots; empty: the system's.
    pub roots: PathBuf,
    pub verify: Verify,
    /// What is shown to a peer that asks for a certificate; both empty: nothing.
    pub files: TlsFiles,
}

impl TlsClientOptions {
    /// Whether anything is named that can be wrong.
    pub fn names_files(&self) -> bool {
        [&self.roots, &self.files.certificate, &self.files.key].iter().any(|path| !path.as_os_str().is_empty())
    }
}

/// Opens sessions; the files are read when the first one is opened.
pub struct TlsClient {
    options: TlsClientOptions,
    config: Mutex<Option<Arc<ClientConfig>>>,
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("options", &self.options).finish_non_exhaustive()
    }
}

impl TlsClient {
    pub fn new(options: TlsClientOptions) -> TlsClient {
        TlsClient { options, config: Mutex::new(None) }
    }

    /// Reads the files now, so that what is wrong with them is known; the error says which, and how.
    pub fn prepare(&self) -> io::Result<()> {
        self.config().map(drop)
    }

    /// Whether the files have been read.
    pub fn is_prepared(&self) -> bool {
        self.config.lock().is_some()
    }

    /// Reads the files again, if they were read, for connections from now on. `rest` is what else has to succeed: on an
    /// error of either everything stays as it is.
    pub fn reload_with(&self, rest: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut config = self.config.lock();
        let fresh = if config.is_some() { Some(read(&self.options)?) } else { None };
        rest()?;
        *config = fresh;
        Ok(())
    }

    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let mut config = self.config.lock();
        match &*config {
            Some(config) => Ok(Arc::clone(config)),
            None => Ok(Arc::clone(config.insert(read(&self.options)?))),
        }
    }

    /// A session with whom `name` means.
    pub(super) fn session(&self, name: ServerName<'static>) -> io::Result<Box<Tls>> {
        let session = UnbufferedClientConnection::new(self.config()?, name).map_err(io::Error::other)?;
        Ok(Box::new(Tls::new(Session::Client(session))))
    }
}

fn read(options: &TlsClientOptions) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = match options.verify {
        Verify::Off => None,
        _ => {
            let roots = Arc::new(read_roots(&options.roots)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            Some(verifier.map_err(io::Error::other)?)
        }
    };
    let verifier = Verifier { inner, verify: options.verify, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let TlsFiles { certificate, key } = &options.files;
    match [certificate, key].map(|path| path.as_os_str().is_empty()) {
        [true, true] => return Ok(Arc::new(builder.with_no_client_auth())),
        [false, false] => {}
        _ => {
            let text = "a client's certificate and its key are named together";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    }
    let bad_key = |why: &dyn fmt::Display| wrong_file("key file of the client", key, why);
    let own = certificates("certificate file of the client", certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| bad_key(&e))?;
    Ok(Arc::new(builder.with_client_auth_cert(own, secret).map_err(|e| bad_key(&e))?))
}

fn read_roots(file: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if !file.as_os_str().is_empty() {
        for root in certificates("file of roots", file)? {
            roots.add(root).map_err(|e| wrong_file("file of roots", file, &e))?;
        }
        return Ok(roots);
    }
    let file = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()).ok_or_else(|| {
        let text = format!("no roots: none of {} is there; name a file of them", SYSTEM_ROOTS.join(", "));
        io::Error::new(io::ErrorKind::NotFound, text)
    })?;
    // A system's bundle may hold some that are of no use here; the others count.
    let (added, _) = roots.add_parsable_certificates(certificates("file of roots", file)?);
    if added == 0 {
        return Err(wrong_file("file of roots", file, &"it holds no usable root"));
    }
    Ok(roots)
}

/// webpki's, without what is not asked for.
#[derive(Debug)]
struct Verifier {
    /// `None`: anybody will do.
    inner: Option<Arc<WebPkiServerVerifier>>,
    verify: Verify,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(certificate, between, name, ocsp, now) {
            // webpki looks at the name last: the chain was good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verify == Verify::Chain => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    // Whoever the peer is, it has to have the key of what it shows.

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
