//! `echo` and `ask`: the two sides of one call, without anything else.

use std::time::Duration;

use blackhole_bus_schema::rpc::{Client, Methods, Request};

use crate::rpc;
use crate::signals::Stop;

/// Answers `echo` until SIGTERM.
pub(crate) async fn serve(delay_ms: u64) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let echo = move |request: Request| async move {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        let caller = request
            .caller
            .map_or_else(|| "nobody".to_owned(), |caller| caller.to_string());
        let payload = String::from_utf8_lossy(&request.payload);
        Ok(format!("{caller} said {payload}").into())
    };
    rpc::serve(Methods::new().on("echo", echo), &mut stop).await
}

/// Calls once, without any repetition.
pub(crate) async fn ask(
    service: &str,
    method: &str,
    payload: String,
    budget_ms: u64,
) -> anyhow::Result<()> {
    let client = Client::from_env().await?;
    match client
        .call(service, method, payload, Duration::from_millis(budget_ms))
        .await
    {
        Ok(answer) => {
            println!("OK: {}", String::from_utf8_lossy(&answer));
            Ok(())
        }
        Err(status) => {
            println!("{}: {}", status.code, status.message);
            anyhow::bail!("the call failed")
        }
    }
}
