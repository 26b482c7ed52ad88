//! The balancer that runs, as commands reach it.

use std::io;
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use lb_config::{API_SOCKET_DEFAULT, ApiAddress};
use serde::Serialize;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::output;
use crate::api::Wire;
use crate::api::proto::balancer_client::BalancerClient;
use crate::tls::{TlsError, client_config, innermost};

/// How long a balancer may take to accept a client.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of one message of an answer, at most.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Which balancer is meant, and how its answer is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Remote {
    /// Where the balancer serves its API: `grpc` of its `[api]`.
    #[arg(long, value_name = "ADDRESS", default_value = API_SOCKET_DEFAULT)]
    api: ApiAddress,
    #[command(flatten)]
    tls: Tls,
    /// Print JSON, with fields that stay.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How both ends know each other, where the balancer has an `[api.tls]`. Files are in PEM format.
#[derive(Clone, Debug, Default, clap::Args)]
struct Tls {
    /// The certificates that the balancer's has to be signed by (PEM); for a balancer with [api.tls].
    #[arg(long = "tls-ca", value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,
    /// Your certificate (PEM).
    #[arg(long = "tls-cert", value_name = "FILE", requires = "ca")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long = "tls-key", value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,
    /// What the balancer's certificate is for, if not for its address.
    #[arg(long = "tls-name", value_name = "NAME", requires = "ca")]
    name: Option<String>,
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(
        "no balancer can be reached at {address}: {cause}; does `weir run` run, with an [api] in its \
         file? (`--api` names another address; one with [api.tls] wants `--tls-ca` and the like)"
    )]
    Unreachable { address: ApiAddress, cause: String },
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("no TLS is spoken at a Unix socket: leave --tls-ca out, or name an address with --api")]
    TlsOfASocket,
    /// What the balancer says.
    #[error("{}", .0.message())]
    Refused(#[from] Status),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl RemoteError {
    /// Exit status: 3 if nobody could be asked, 2 if the question was wrong, else 1.
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Unreachable { .. } => 3,
            Self::Tls(_) | Self::TlsOfASocket => 2,
            Self::Refused(status) => match status.code() {
                Code::Unavailable => 3,
                Code::NotFound | Code::InvalidArgument => 2,
                _ => 1,
            },
            Self::Output(_) => 1,
        })
    }
}

/// A client that is connected.
pub(crate) type Client = BalancerClient<Channel>;

impl Remote {
    #[cfg(test)]
    pub(crate) fn at(api: ApiAddress) -> Self {
        Self { api, tls: Tls::default(), json: false }
    }

    #[cfg(test)]
    pub(crate) fn by_tls(api: ApiAddress, ca: &Path, cert: &Path, name: &str) -> Self {
        let key = cert.with_extension("key");
        let tls = Tls {
            ca: Some(ca.into()),
            cert: Some(cert.into()),
            key: Some(key),
            name: Some(name.into()),
        };
        Self { api, tls, json: false }
    }

    /// Runs a command that asks the balancer, and says with which status it ends.
    pub(crate) fn run<F>(&self, command: impl FnOnce(Client) -> F) -> ExitCode
    where
        F: Future<Output = Result<ExitCode, RemoteError>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = match runtime {
            Ok(runtime) => runtime.block_on(async { command(self.connect().await?).await }),
            Err(error) => Err(error.into()),
        };
        Self::end(result)
    }

    /// With which status a command ends; says what is wrong.
    pub(crate) fn end(result: Result<ExitCode, RemoteError>) -> ExitCode {
        match result {
            Ok(code) => code,
            // Whoever reads has had enough.
            Err(RemoteError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("weir: {error}");
                error.exit_code()
            }
        }
    }

    pub(crate) async fn connect(&self) -> Result<Client, RemoteError> {
        let client = BalancerClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// To any of the balancer's services.
    pub(crate) async fn channel(&self) -> Result<Channel, RemoteError> {
        let address = self.api.clone();
        let connector = tower::service_fn(move |_| {
            let address = address.clone();
            async move {
                let wire: Box<dyn Wire> = match address {
                    ApiAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
                    ApiAddress::Tcp(address) => Box::new(TcpStream::connect(address).await?),
                };
                Ok::<_, io::Error>(TokioIo::new(wire))
            }
        });
        let endpoint = self.endpoint()?.connect_timeout(CONNECT_TIME_MAX);
        let connected = endpoint.connect_with_connector(connector).await;
        connected.map_err(|error| self.unreachable(&error))
    }

    /// How it is talked to; the connector knows where it is.
    fn endpoint(&self) -> Result<Endpoint, RemoteError> {
        let Tls { ca: Some(ca), cert, key, name } = &self.tls else {
            // The name is for HTTP only.
            return Ok(Endpoint::from_static("http://weir"));
        };
        let ApiAddress::Tcp(address) = &self.api else { return Err(RemoteError::TlsOfASocket) };
        let mut tls = client_config(ca, cert.as_deref().zip(key.as_deref()))?;
        if let Some(name) = name {
            tls = tls.domain_name(name);
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}"));
        let endpoint = endpoint.and_then(|endpoint| endpoint.tls_config(tls));
        endpoint.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &tonic::transport::Error) -> RemoteError {
        RemoteError::Unreachable { address: self.api.clone(), cause: innermost(error) }
    }

    /// Shows what was answered.
    pub(crate) fn show<T: Serialize>(
        &self,
        answer: &T,
        for_people: impl FnOnce(&T) -> String,
    ) -> Result<ExitCode, RemoteError> {
        if self.json {
            output::json(answer)?;
        } else {
            output::text(&for_people(answer))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// All messages of an answer.
pub(crate) async fn all<T>(mut messages: Streaming<T>) -> Result<Vec<T>, RemoteError> {
    let mut all = Vec::new();
    while let Some(message) = messages.message().await? {
        all.push(message);
    }
    Ok(all)
}
