//! `blackhole call`: a call through the bridge, by the operator.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::names::{Component, Generation, InstanceName};
use blackhole_bus_schema::registry::ListRegistry;
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::rpc::{Client, ConnectOptions, Key};
use blackhole_bus_schema::transport::MAX_MESSAGE_BYTES;
use serde::Serialize;

use crate::args::{self, Format};
use crate::client::{self, Overview, Peer};
use crate::context::Context;
use crate::error::Error;
use crate::view::names::{Filter, Name};
use crate::view::service::rows;
use crate::{human, out};

/// What callees see as the caller: a name that no service can have.
const CALLER: &str = "cli";

#[derive(Serialize)]
struct Answer<'a> {
    service: &'a str,
    method: &'a str,
    bytes: usize,
    /// The answer, where it is text.
    text: Option<&'a str>,
    /// The answer in hexadecimal digits, where it is not.
    hex: Option<String>,
}

pub(super) async fn run(context: &Context, args: &args::Call) -> Result<(), Error> {
    let callee = Name::parse(&args.service)?;
    let service = args.service.as_str();
    let payload = payload(args.payload.as_deref())?;
    let operation = format!("call {service} {}", args.method);
    // Without a key nobody could answer; asking makes none.
    if !client::lives(&context.dirs, &Component::Bridge) || !context.dirs.rpc_key().exists() {
        return Err(Error::Unreachable {
            operation,
            component: "the bridge".to_owned(),
        });
    }
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Bus {
        operation: operation.clone(),
        source,
    };
    let key = Key::load_or_create(&context.dirs).map_err(|error| failed(Box::new(error)))?;
    let options = credentials(context, &key).map_err(|error| failed(Box::new(error)))?;
    let client = Client::connect(options)
        .await
        .map_err(|error| failed(Box::new(error)))?;
    let budget = context.own_timeout().unwrap_or(args.budget);
    let call = client.call(service, &args.method, payload, budget);
    tokio::pin!(call);
    let late = tokio::time::sleep(client::WAIT);
    let answer = tokio::select! {
        answer = &mut call => answer,
        () = late => {
            // The call goes on while it is found out what it waits for.
            tokio::select! {
                biased;
                answer = &mut call => answer,
                () = say_what_is_missing(context, &callee, budget) => call.await,
            }
        }
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => {
            // What the method itself said stands; only who was not reached may not exist.
            let unreached = matches!(
                status.code,
                Code::NotFound | Code::Unavailable | Code::DeadlineExceeded
            );
            if let Name::Instance(instance) = &callee
                && unreached
            {
                known(context, instance).await?;
            }
            return Err(Error::Called { operation, status });
        }
    };
    match context.format {
        Format::Table => {
            out::print(&answer)?;
            match is_text_without_end(&answer) || std::io::stdout().is_terminal() {
                true if !answer.ends_with(b"\n") => out::println(""),
                _ => Ok(()),
            }
        }
        Format::Json | Format::Yaml => {
            let text = std::str::from_utf8(&answer).ok();
            let document = Answer {
                service,
                method: &args.method,
                bytes: answer.len(),
                text,
                hex: text
                    .is_none()
                    .then(|| blackhole_bus_schema::dirs::hex(&answer)),
            };
            out::document(context.format, &document, String::new)
        }
    }
}

/// A text that lacks the end of its line, which it gets, so that what comes next is a line of its
/// own. Other bytes stay as they are for a program.
fn is_text_without_end(answer: &[u8]) -> bool {
    !answer.is_empty() && !answer.ends_with(b"\n") && std::str::from_utf8(answer).is_ok()
}

/// Tells why there is no answer yet.
async fn say_what_is_missing(context: &Context, callee: &Name, budget: Duration) {
    let registered = match Peer::open(&context.dirs, Component::Bridge).await {
        Ok(Peer {
            link: Some(link), ..
        }) => client::all::<ListRegistry>(&link, client::WAIT).await,
        _ => return,
    };
    let Ok(registered) = registered else {
        return out::note("the bridge has not answered yet; the call waits for it");
    };
    let serves = registered
        .iter()
        .any(|one| callee.covers(&one.instance) && !one.draining);
    let budget = human::duration(budget);
    out::note(match (serves, callee) {
        (true, callee) => format!("{callee} has not answered yet; waiting up to {budget}"),
        (false, Name::Instance(instance)) => {
            format!("{instance} is not registered with the bridge; waiting up to {budget} for it")
        }
        (false, Name::Service(service)) => format!(
            "no instance of {service} is registered with the bridge; waiting up to {budget} for one"
        ),
    });
}

/// Whether there is such an instance, as far as anybody knows.
async fn known(context: &Context, instance: &InstanceName) -> Result<(), Error> {
    let (answers, _) = Overview::open(&context.dirs, client::WAIT)
        .await?
        .ask()
        .await;
    if answers.status.is_none() && answers.processes.is_none() {
        return Ok(());
    }
    let rows = rows(human::now_ns(), &answers);
    Filter::parse(&[instance.to_string()])?.select(rows.iter().map(|row| &row.instance))?;
    Ok(())
}

/// Two of these at one time are two callers: the process id tells them apart.
fn credentials(
    context: &Context,
    key: &Key,
) -> Result<ConnectOptions, blackhole_bus_schema::names::NameError> {
    let instance: InstanceName = format!("{CALLER}.{}", std::process::id()).parse()?;
    let token = key.token(&instance, Generation::default());
    Ok(ConnectOptions {
        instance,
        token,
        ..ConnectOptions::of_part(&context.dirs, key, CALLER)?
    })
}

/// The bytes to send: a text, `@FILE`, or `-` for standard input.
fn payload(given: Option<&str>) -> Result<Vec<u8>, Error> {
    match given {
        None => Ok(Vec::new()),
        Some("-") => read(std::io::stdin().lock(), Path::new("standard input")),
        Some(text) => match text.strip_prefix('@') {
            Some(path) => {
                let path = Path::new(path);
                let file =
                    std::fs::File::open(path).map_err(|source| Error::io("open", path, source))?;
                read(file, path)
            }
            None => Ok(text.as_bytes().to_vec()),
        },
    }
}

fn read(from: impl Read, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    from.take(MAX_MESSAGE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::io("read", path, source))?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Error::Usage(format!(
            "{} holds more than the {MAX_MESSAGE_BYTES} bytes that a message can have",
            path.display()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_gets_the_end_of_its_line() {
        for (answer, ends) in [
            (&b"hello"[..], true),
            (b"", false),
            (b"hello\n", false),
            (b"\xff\x00", false),
        ] {
            assert_eq!(is_text_without_end(answer), ends, "{answer:?}");
        }
    }

    #[test]
    fn a_payload_is_a_text_or_a_file() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("p");
        std::fs::write(&path, b"\xff\x00").unwrap();
        assert_eq!(payload(None).unwrap(), b"");
        assert_eq!(payload(Some("a b")).unwrap(), b"a b");
        let at = format!("@{}", path.display());
        assert_eq!(payload(Some(&at)).unwrap(), b"\xff\x00");
        let missing = payload(Some("@/nonexistent/file")).unwrap_err();
        assert!(missing.report().contains("/nonexistent/file"));
        std::fs::write(&path, vec![0; MAX_MESSAGE_BYTES + 1]).unwrap();
        assert!(matches!(payload(Some(&at)), Err(Error::Usage(_))));
    }
}
