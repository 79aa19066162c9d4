//! HTTP/1.1 as far as small services on loopback need it: hyper on both sides,
//! whole bodies, one connection a request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Longest body taken: these services exchange short JSON texts.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// A request, with its body read.
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// Segments of the path, without empty ones.
    pub(crate) path: Vec<String>,
    /// The part after `?`, undecoded.
    pub(crate) query: String,
    pub(crate) body: Bytes,
}

impl Asked {
    /// The value of `name` in the query, undecoded.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// Method and segments, for `match`.
    pub(crate) fn route(&self) -> (&str, Vec<&str>) {
        (
            self.method.as_str(),
            self.path.iter().map(String::as_str).collect(),
        )
    }
}

/// An answer: status and text.
pub(crate) struct Answer(pub(crate) StatusCode, pub(crate) String);

impl Answer {
    pub(crate) fn ok(text: impl Into<String>) -> Self {
        Self(StatusCode::OK, text.into())
    }

    pub(crate) fn not_found() -> Self {
        Self(StatusCode::NOT_FOUND, "not found\n".to_owned())
    }

    /// 503, for what another service did not give.
    pub(crate) fn unavailable(error: &anyhow::Error) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n"))
    }
}

/// Binds, so that a caller can say READY=1 only once it listens.
pub(crate) async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen)
        .await
        .map_err(|error| anyhow::Error::new(error).context(format!("cannot listen on {listen}")))
}

/// Answers requests for ever, each connection in its own task.
pub(crate) async fn serve<F, Fut>(listener: TcpListener, handler: F) -> anyhow::Result<()>
where
    F: Fn(Asked) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let handler = Arc::new(handler);
    loop {
        let (stream, _) = listener.accept().await?;
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&handler), request));
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer<F, Fut>(
    handler: Arc<F>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    F: Fn(Asked) -> Fut,
    Fut: Future<Output = Answer>,
{
    let (head, body) = request.into_parts();
    let Answer(status, text) = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Err(_) => Answer(StatusCode::PAYLOAD_TOO_LARGE, "body too large\n".to_owned()),
        Ok(body) => {
            let asked = Asked {
                method: head.method,
                path: head
                    .uri
                    .path()
                    .split('/')
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned)
                    .collect(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                body: body.to_bytes(),
            };
            handler(asked).await
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}

/// Asks another service on loopback; gives back the status and the body as text.
pub(crate) async fn request(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> anyhow::Result<(StatusCode, String)> {
    use anyhow::Context;

    let what = format!("{method} http://{to}{path}");
    let stream = TcpStream::connect(to).await.with_context(|| what.clone())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .with_context(|| what.clone())?;
    // The connection ends by itself when `sender` is dropped and the answer is read.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", to.to_string())
        .body(Full::new(body.into()))
        .with_context(|| what.clone())?;
    let response = sender
        .send_request(request)
        .await
        .with_context(|| what.clone())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("{what}: {error}"))?
        .to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
