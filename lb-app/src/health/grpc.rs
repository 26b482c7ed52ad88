//! What does a gRPC server say of itself? (`grpc.health.v1`)

use std::net::SocketAddr;

use ::http::header::{CONTENT_TYPE, TE, USER_AGENT};
use ::http::{HeaderMap, Request, Uri};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use prost::Message;

use super::failure::Failure;
use super::probe::Route;
use super::{http, tcp};

/// Bytes of an answer, at most. It has a number in it.
const ANSWER_BYTES_MAX: usize = 4096;
/// Before a message: is it compressed, and how long is it?
const PREFIX_BYTES: usize = 5;

/// <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

pub(super) async fn check(
    route: &Route<'_>,
    service: &str,
    host: Option<&str>,
) -> Result<(), Failure> {
    let request = request(route.to, host).map_err(|error| Failure::Grpc(error.to_string()))?;
    let stream = tcp::connect(route).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::select! {
        biased;
        answer = ask(client, request, service) => answer,
        ended = connection => Err(ended.map_or_else(Failure::from, |()| Failure::Closed)),
    }
}

fn request(address: SocketAddr, host: Option<&str>) -> Result<Request<()>, ::http::Error> {
    let authority = host.map_or_else(|| address.to_string(), Into::into);
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()?;
    Request::post(uri)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, http::AGENT)
        .body(())
}

async fn ask(
    client: SendRequest<Bytes>,
    request: Request<()>,
    service: &str,
) -> Result<(), Failure> {
    let mut client = client.ready().await?;
    let (response, mut body) = client.send_request(request, false)?;
    body.send_data(framed(&HealthCheckRequest { service: service.into() }), true)?;
    let (head, body) = response.await?.into_parts();
    if head.status != 200 {
        return Err(Failure::Status(head.status.as_u16()));
    }
    // Without a message, the status stands in the head.
    status(&head.headers)?;
    let (message, trailers) = read(body).await?;
    status(&trailers)?;
    let message = message.get(PREFIX_BYTES..).unwrap_or_default();
    let answer =
        HealthCheckResponse::decode(message).map_err(|error| Failure::Grpc(error.to_string()))?;
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        ServingStatus::NotServing => Err(Failure::NotServing("NOT_SERVING")),
        ServingStatus::ServiceUnknown => Err(Failure::NotServing("SERVICE_UNKNOWN")),
        ServingStatus::Unknown => Err(Failure::NotServing("UNKNOWN")),
    }
}

/// The message as it travels: not compressed, with its length before it.
fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.put(&message.encode_to_vec()[..]);
    bytes.freeze()
}

/// All of the answer.
async fn read(mut body: RecvStream) -> Result<(Vec<u8>, HeaderMap), Failure> {
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        if message.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(Failure::Grpc("the answer is too long".into()));
        }
        message.extend_from_slice(&part);
        body.flow_control().release_capacity(part.len())?;
    }
    Ok((message, body.trailers().await?.unwrap_or_default()))
}

/// What these headers say of the call, if they say anything.
/// <https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>
fn status(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(status) = headers.get("grpc-status") else { return Ok(()) };
    let what = match status.as_bytes() {
        b"0" => return Ok(()),
        b"5" => "it does not know the service",
        b"12" => "it has no health service",
        _ => "the call failed",
    };
    Err(Failure::GrpcStatus(String::from_utf8_lossy(status.as_bytes()).into(), what))
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        match error.get_io() {
            Some(error) => Self::of_socket(error).unwrap_or(Self::Closed),
            None if error.reason() == Some(Reason::NO_ERROR) => Self::Closed,
            None => Self::Grpc(error.to_string()),
        }
    }
}
