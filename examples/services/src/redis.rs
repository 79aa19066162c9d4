//! A client of Redis as far as the shop needs it: one command at a time over
//! one connection, in RESP2 (redis.io/docs/latest/develop/reference/protocol-spec).

use std::net::SocketAddr;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Longest value taken from Redis.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// An answer of Redis. The shop's commands answer with nothing nested.
#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Nil,
    Integer(i64),
    Text(String),
}

/// A connection that is made on first use and again after an error, so that a
/// restart of Redis costs one failed command.
pub(crate) struct Redis {
    address: SocketAddr,
    connection: Mutex<Option<BufStream<TcpStream>>>,
}

impl Redis {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            connection: Mutex::new(None),
        }
    }

    /// Sends one command and reads its answer. Not cancel safe: cancelled in
    /// the middle it drops the connection, and the next command makes a new one.
    pub(crate) async fn command(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut held = self.connection.lock().await;
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.address)
                    .await
                    .with_context(|| format!("cannot connect to Redis on {}", self.address))?;
                BufStream::new(stream)
            }
        };
        let value = exchange(&mut connection, words)
            .await
            .with_context(|| format!("Redis command {}", words.first().unwrap_or(&"")))?;
        *held = Some(connection);
        value.map_err(|error| anyhow::anyhow!("Redis refused {words:?}: {error}"))
    }

    /// A text answer; nil is `None`.
    pub(crate) async fn text(&self, words: &[&str]) -> anyhow::Result<Option<String>> {
        match self.command(words).await? {
            Value::Nil => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::Integer(number) => Ok(Some(number.to_string())),
        }
    }
}

/// The outer error is one of the connection, the inner one an answer of Redis.
async fn exchange(
    connection: &mut BufStream<TcpStream>,
    words: &[&str],
) -> anyhow::Result<Result<Value, String>> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    connection.write_all(request.as_bytes()).await?;
    connection.flush().await?;

    let mut line = String::new();
    connection.read_line(&mut line).await?;
    let line = line
        .strip_suffix("\r\n")
        .context("the connection was closed")?;
    let (kind, rest) = line.split_at_checked(1).context("an empty answer")?;
    Ok(match kind {
        "+" => Ok(Value::Text(rest.to_owned())),
        "-" => Err(rest.to_owned()),
        ":" => Ok(Value::Integer(rest.parse()?)),
        "$" if rest == "-1" => Ok(Value::Nil),
        "$" => {
            let length: usize = rest.parse()?;
            anyhow::ensure!(length <= MAX_VALUE_BYTES, "a value of {length} bytes");
            let mut bytes = vec![0; length + 2];
            connection.read_exact(&mut bytes).await?;
            bytes.truncate(length);
            Ok(Value::Text(String::from_utf8(bytes)?))
        }
        other => bail!("an answer of kind {other:?}"),
    })
}
