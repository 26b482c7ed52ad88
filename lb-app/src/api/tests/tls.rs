//! By TLS: who has a certificate is a client, and nobody else gets anything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lb_config::ApiTls;
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use super::*;
use crate::api::proto::balancer_client::BalancerClient;
use crate::tls::client_config;
use crate::tls::testing::certificate;

/// A server by TLS, and its files.
struct Secured {
    _api: Api,
    _shown: watch::Sender<Option<Arc<View>>>,
    folder: TempDir,
    at: SocketAddr,
}

impl Secured {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, ca, days) in [
            ("ca", None, 2),
            ("other", None, 2),
            ("weir", Some("ca"), 2),
            ("friend", Some("ca"), 2),
            ("thief", Some("other"), 2),
            ("late", Some("ca"), -1),
        ] {
            certificate(folder.path(), name, ca, days);
        }
        let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (shown, seen) = watch::channel(Some(Arc::new(view(&config(FILE)))));
        let api = Api::start(&Self::config(folder.path(), at), seen).unwrap();
        Self { _api: api, _shown: shown, folder, at }
    }

    fn config(folder: &Path, at: SocketAddr) -> lb_config::Api {
        let [cert, key, client_ca] = ["weir.pem", "weir.key", "ca.pem"].map(|it| folder.join(it));
        let tls = Some(ApiTls { cert, key, client_ca });
        lb_config::Api { grpc: ApiAddress::Tcp(at), tls }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks with this certificate, trusting this CA. What is wrong, if something is.
    async fn ask(&self, ca: &str, identity: &str, name: &str) -> Result<String, String> {
        let (ca, identity) = (self.file(ca), self.file(identity));
        let remote = Remote::by_tls(ApiAddress::Tcp(self.at), &ca, &identity, name);
        let mut client = remote.connect().await.map_err(|error| error.to_string())?;
        let status = client.get_status(GetStatusRequest {}).await;
        status.map(|status| status.into_inner().site).map_err(|error| format!("{error:?}"))
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }
}

async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
}

#[tokio::test]
async fn only_who_has_a_certificate_of_the_ca_gets_anything() {
    let secured = Secured::start();
    for name in ["localhost", "127.0.0.1"] {
        assert_eq!(secured.ask("ca.pem", "friend.pem", name).await, Ok("edge".into()));
    }
    for (ca, identity, name, why) in [
        ("ca.pem", "thief.pem", "localhost", "UnknownCA"),
        ("ca.pem", "late.pem", "localhost", "CertificateExpired"),
        ("other.pem", "friend.pem", "localhost", "UnknownIssuer"),
        ("ca.pem", "friend.pem", "elsewhere", "not valid for name"),
    ] {
        let refused = secured.ask(ca, identity, name).await.unwrap_err();
        assert!(refused.contains(why), "{ca} {identity} {name}: {refused}");
    }
    // Without a certificate.
    let tls = client_config(&secured.file("ca.pem"), None).unwrap();
    let endpoint = Endpoint::from_shared(format!("https://{}", secured.at)).unwrap();
    let refused = match endpoint.tls_config(tls).unwrap().connect().await {
        Err(error) => format!("{error:?}"),
        Ok(channel) => {
            let status = BalancerClient::new(channel).get_status(GetStatusRequest {}).await;
            format!("{:?}", status.unwrap_err())
        }
    };
    assert!(refused.contains("CertificateRequired"), "{refused}");
    // Without TLS.
    let plain = Remote::at(ApiAddress::Tcp(secured.at));
    let refused = match plain.connect().await {
        Err(error) => error.to_string(),
        Ok(mut client) => client.get_status(GetStatusRequest {}).await.unwrap_err().to_string(),
    };
    assert!(!refused.contains("edge"), "{refused}");
    assert_eq!(secured.ask("ca.pem", "friend.pem", "localhost").await, Ok("edge".into()));
}

/// Garbage, half a handshake, and silence, more than there is room for.
#[tokio::test]
async fn strangers_keep_no_client_out() {
    let secured = Secured::start();
    let start = Instant::now();
    let mut strangers = Vec::new();
    // How a ClientHello begins (RFC 8446 §4.1.2), in a record of 512 bytes.
    let half = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 100]].concat();
    for words in [&[][..], &half].iter().cycle().take(STRANGERS_MAX + 20) {
        let mut stream = secured.connect().await;
        stream.write_all(words).await.unwrap();
        strangers.push(stream);
    }
    let mut wrong = secured.connect().await;
    wrong.write_all(&[0xa5; 4096]).await.unwrap();
    timeout(PATIENCE, until_closed(&mut wrong)).await.unwrap();
    assert_eq!(secured.ask("ca.pem", "friend.pem", "localhost").await, Ok("edge".into()));
    for stream in &mut strangers {
        timeout(PATIENCE, until_closed(stream)).await.unwrap();
    }
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn files_that_are_renewed_are_read_again() {
    let secured = Secured::start();
    assert!(secured.ask("ca.pem", "thief.pem", "localhost").await.is_err());
    // Half of a renewal: what was read before stays.
    std::fs::write(secured.file("ca.pem.new"), "none").unwrap();
    let trusted = secured.file("trusted.pem");
    std::fs::copy(secured.file("ca.pem"), &trusted).unwrap();
    std::fs::rename(secured.file("ca.pem.new"), secured.file("ca.pem")).unwrap();
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(secured.ask("trusted.pem", "friend.pem", "localhost").await, Ok("edge".into()));
    std::fs::copy(secured.file("other.pem"), secured.file("ca.pem")).unwrap();
    let end = Instant::now() + PATIENCE;
    while secured.ask("trusted.pem", "thief.pem", "localhost").await.is_err() {
        assert!(Instant::now() < end, "the files are not read again");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(secured.ask("trusted.pem", "friend.pem", "localhost").await.is_err());
}

#[tokio::test]
async fn files_that_are_no_good_are_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "ca", None, 2);
    certificate(folder.path(), "weir", Some("ca"), 2);
    certificate(folder.path(), "stray", Some("ca"), 2);
    let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = |tls: ApiTls| {
        let config = lb_config::Api { grpc: ApiAddress::Tcp(at), tls: Some(tls) };
        Api::start(&config, watch::channel(None).1).unwrap_err().to_string()
    };
    let good = Secured::config(folder.path(), at).tls.unwrap();
    let file = |name: &str| folder.path().join(name);
    for (tls, says) in [
        (ApiTls { cert: file("none"), ..good.clone() }, "cannot read"),
        (ApiTls { cert: file("weir.key"), ..good.clone() }, "weir.key has no certificate in PEM"),
        (ApiTls { key: file("weir.pem"), ..good.clone() }, "weir.pem has no key in PEM format"),
        (ApiTls { key: file("stray.key"), ..good.clone() }, "weir.pem: "),
        (ApiTls { client_ca: file("weir.csr"), ..good.clone() }, "weir.csr has no certificate"),
    ] {
        let refused = refused(tls);
        assert!(refused.contains(says) && refused.ends_with("see [api.tls]"), "{refused}");
    }
}
