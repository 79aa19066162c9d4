//! The transport's library with the options of the RPC plane and nothing of the
//! project in between.

use std::time::Duration;

use omq_tokio::options::ReconnectPolicy;
use omq_tokio::{AuthenticationResult, Authenticator, MechanismSetup, Options};

/// As `bus_schema::transport::rpc` sets them.
fn options() -> Options {
    Options {
        monitor_capacity: 4_096,
        ..Options::new()
            .send_hwm(8_192)
            .recv_hwm(1_024)
            .max_message_size(16 * 1024 * 1024)
            .handshake_timeout(Duration::from_secs(5))
            .heartbeat_interval(Duration::from_secs(5))
            .heartbeat_timeout(Duration::from_secs(15))
            .max_pending_handshakes(4096)
            .linger(Duration::from_millis(500))
    }
}

/// A ROUTER that asks for PLAIN credentials and takes any.
pub fn router() -> Options {
    let authenticator = Authenticator::new_with_result(|_| {
        AuthenticationResult::allow().with_user_id(bytes::Bytes::from_static(b"1"))
    });
    Options {
        mechanism: MechanismSetup::PlainServer { authenticator },
        router_mandatory: true,
        ..options()
    }
}

/// A DEALER that presents PLAIN credentials.
pub fn dealer(username: &str) -> Options {
    options()
        .plain_client(username, "password")
        .reconnect(ReconnectPolicy::Exponential {
            min: Duration::from_millis(10),
            max: Duration::from_millis(200),
        })
}
