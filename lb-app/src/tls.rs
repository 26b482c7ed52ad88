//! TLS by which both ends show who they are: with clients of the API, and with control planes. (Health checks
//! believe nothing that they are shown, and have their own.)

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_config::ApiTls;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tracing::{info, warn};

/// Bytes of a file with certificates or a key, at most.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// How often a server looks whether its files have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// HTTP/2, as all of gRPC is.
const ALPN: &[u8] = b"h2";

/// What is wrong with the files. One line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is longer than {PEM_BYTES_MAX} bytes", .0.display())]
    LongFile(PathBuf),
    #[error("{} has no {what} in PEM format", path.display())]
    NoPem { path: PathBuf, what: &'static str },
    #[error("{}: {source}", path.display())]
    Certificate { path: PathBuf, source: rustls::Error },
    #[error("{}: {source}", path.display())]
    Authority { path: PathBuf, source: VerifierBuilderError },
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// What a server needs: files in PEM format.
#[derive(Clone, Debug)]
pub(crate) struct ServerFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// What clients' certificates have to be signed by; absent: they need none.
    pub(crate) client_ca: Option<PathBuf>,
}

impl From<&ApiTls> for ServerFiles {
    fn from(ApiTls { cert, key, client_ca }: &ApiTls) -> Self {
        Self { cert: cert.clone(), key: key.clone(), client_ca: Some(client_ca.clone()) }
    }
}

/// By what a file is known to be the same.
type Stamp = Option<(u64, u64, i64, i64)>;

/// A server's end.
pub(crate) struct Acceptor {
    files: ServerFiles,
    current: TlsAcceptor,
    stamps: Vec<Stamp>,
    next_look: Instant,
}

impl Acceptor {
    pub(crate) fn new(files: ServerFiles) -> Result<Self, TlsError> {
        let stamps = files.stamps();
        let current = TlsAcceptor::from(Arc::new(files.config()?));
        Ok(Self { files, current, stamps, next_look: Instant::now() + LOOK_INTERVAL })
    }

    /// For the next client. Certificates are renewed: files that have changed are read again, and if there is
    /// something wrong with them, what was read before stays.
    pub(crate) fn newest(&mut self) -> TlsAcceptor {
        if Instant::now() >= self.next_look {
            self.next_look = Instant::now() + LOOK_INTERVAL;
            let stamps = self.files.stamps();
            if stamps != self.stamps {
                self.stamps = stamps;
                match self.files.config() {
                    Ok(config) => {
                        info!("read again: {}", self.files.cert.display());
                        self.current = TlsAcceptor::from(Arc::new(config));
                    }
                    Err(error) => warn!("{error}; the certificates that were read before stay"),
                }
            }
        }
        self.current.clone()
    }
}

impl ServerFiles {
    fn stamps(&self) -> Vec<Stamp> {
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        };
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).map(stamp).collect()
    }

    fn config(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let wrong = |source| TlsError::Certificate { path: path.clone(), source };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(wrong)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let wrong = |source| TlsError::Authority { path: path.clone(), source };
                builder.with_client_cert_verifier(verifier.build().map_err(wrong)?)
            }
        };
        let wrong = |source| TlsError::Certificate { path: self.cert.clone(), source };
        let key = PrivateKeyDer::from_pem_slice(&pem(&self.key)?);
        let key = key.map_err(|_| TlsError::NoPem { path: self.key.clone(), what: "key" })?;
        let mut config = builder.with_single_cert(certificates(&self.cert)?, key).map_err(wrong)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each client shows its certificate each time, as long as that is good and no longer.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let none = || TlsError::NoPem { path: path.into(), what: "certificate" };
    let pem = pem(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(none)
}

/// A client's end. `identity` is its certificate and its key; files are read each time.
pub(crate) fn client_config(
    ca: &Path,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientTlsConfig, TlsError> {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(ca)?));
    match identity {
        Some((cert, key)) => Ok(config.identity(Identity::from_pem(pem(cert)?, pem(key)?))),
        None => Ok(config),
    }
}

fn pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::File { path: path.into(), source };
    if fs::metadata(path).map_err(unreadable)?.len() > PEM_BYTES_MAX {
        return Err(TlsError::LongFile(path.into()));
    }
    fs::read(path).map_err(unreadable)
}

/// What an error says at its root: those around it say that it was one.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
pub(crate) mod testing {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    /// Makes `NAME.pem` and `NAME.key`, for `localhost` and 127.0.0.1: signed by `ca`, or by itself; good for
    /// so many days.
    pub(crate) fn certificate(folder: &Path, name: &str, ca: Option<&str>, days: i32) {
        let run = |args: &str| {
            let made = Command::new("openssl").args(args.split(' ')).current_dir(folder).output();
            let made = made.unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        };
        let new = format!("-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name}");
        let Some(ca) = ca else {
            run(&format!("req -x509 {new} -keyout {name}.key -out {name}.pem -days {days}"));
            return;
        };
        fs::write(folder.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
        run(&format!("req {new} -keyout {name}.key -out {name}.csr"));
        let by = format!("-CA {ca}.pem -CAkey {ca}.key -CAcreateserial -extfile names");
        run(&format!("x509 -req -in {name}.csr -out {name}.pem {by} -days {days}"));
    }
}
