//! The `http` probe: one GET on a connection of its own.

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Gets `url`. Healthy on a status from 200 to 399; the body is not read.
/// Ends when the caller drops it; bound it with a timeout.
pub(super) async fn get(url: &str) -> Result<(), String> {
    let uri: Uri = url
        .parse()
        .map_err(|error| format!("{url:?} is no URL: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url:?}: only http:// is supported"));
    }
    let authority = uri
        .authority()
        .ok_or_else(|| format!("{url:?} names no host"))?;
    // An IPv6 address stands in brackets in a URL, and without them in connect.
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| format!("connect to {host}:{port}: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("GET {url}: {error}"))?;
    // Ends with this future: a set aborts its tasks when it is dropped.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, authority.as_str())
        .header(
            USER_AGENT,
            concat!("blackhole-probe/", env!("CARGO_PKG_VERSION")),
        )
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("GET {url}: {error}"))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| format!("GET {url}: {error}"))?;
    let status = response.status().as_u16();
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("GET {url}: status {status}"))
    }
}
