//! One request over plain HTTP, without a library: an independent view of the
//! example's services.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Protection against a hang.
const LIMIT: Duration = Duration::from_secs(20);

/// Status and body of an answer.
pub type Answer = (u16, String);

/// `GET`.
///
/// # Errors
/// What went wrong, for a person.
pub fn get(port: u16, path: &str) -> Result<Answer, String> {
    request("GET", port, path, "")
}

/// `POST`.
///
/// # Errors
/// What went wrong, for a person.
pub fn post(port: u16, path: &str, body: &str) -> Result<Answer, String> {
    request("POST", port, path, body)
}

fn request(method: &str, port: u16, path: &str, body: &str) -> Result<Answer, String> {
    let text = |error: std::io::Error| format!("{method} :{port}{path}: {error}");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).map_err(text)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(text)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(format!("no answer but {answer:?}"))?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.ok_or(format!("no status in {head:?}"))?,
        body.to_owned(),
    ))
}

/// The body of a `GET` that is answered with 200, as JSON.
///
/// # Errors
/// What went wrong, for a person.
pub fn json(port: u16, path: &str) -> Result<serde_json::Value, String> {
    match get(port, path)? {
        (200, body) => serde_json::from_str(&body).map_err(|error| format!("{error}: {body:?}")),
        (status, body) => Err(format!("{path}: {status} {body}")),
    }
}
