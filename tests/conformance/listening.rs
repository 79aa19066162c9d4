//! A deployment that foreign clients reach over ipc and over TCP.

use blackhole_bus_schema::rpc::ConnectOptions;
use blackhole_tests::{Deployment, wait_for};
use serde_json::Value;

use super::python::Python;
use super::{PortPairs, options};

/// How a foreign client comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Ipc,
    Tcp,
}

/// A deployment that listens on TCP, too.
pub struct Listening {
    pub deployment: Deployment,
    pub way: Way,
    ports: PortPairs,
}

pub const SERVICES: &str = "
services:
  web: {command: [blackhole-example, idle], autostart: false}
";

impl Listening {
    pub fn new(way: Way) -> Self {
        let ports = PortPairs::take(5);
        let [supervisor, manager, resources, bridge, rpc] = ports.first[..] else {
            panic!("five pairs of ports");
        };
        let deployment = Deployment::new(&format!(
            "runtime:
  orchestrator:
    listen:
      supervisor: 127.0.0.1:{supervisor}
      process-manager: 127.0.0.1:{manager}
      resource-controller: 127.0.0.1:{resources}
      bridge: 127.0.0.1:{bridge}
      rpc: 127.0.0.1:{rpc}
{SERVICES}"
        ));
        Self {
            deployment,
            way,
            ports,
        }
    }

    /// The arguments that lead a program to a component's bus.
    pub fn bus(&self, component: &str) -> Vec<String> {
        let number = match (self.way, component) {
            (Way::Ipc, _) => return Vec::new(),
            (Way::Tcp, "supervisor") => 0,
            (Way::Tcp, "process-manager") => 1,
            (Way::Tcp, "resource-controller") => 2,
            (Way::Tcp, "bridge") => 3,
            (Way::Tcp, other) => panic!("{other} has no port"),
        };
        let port = self.ports.first[number];
        let key = self.deployment.path().join("state/bus.key");
        vec![
            format!("tcp://127.0.0.1:{port}"),
            format!("tcp://127.0.0.1:{}", port + 1),
            key.display().to_string(),
        ]
    }

    pub fn rpc(&self) -> String {
        match self.way {
            Way::Ipc => format!("ipc://{}", self.deployment.dirs().rpc_socket().display()),
            Way::Tcp => format!("tcp://127.0.0.1:{}", self.ports.first[4]),
        }
    }

    pub fn python(&self, script: &str, arguments: &[&str], component: &str) -> Python {
        let over = self.bus(component);
        if let Some(key) = over.last() {
            // A client reads it; the daemon that needs it makes it.
            wait_for("the key of the bus", || {
                std::fs::read(key).map_err(|error| error.to_string())
            });
        }
        let over = over.iter().map(String::as_str);
        let arguments: Vec<&str> = arguments.iter().copied().chain(over).collect();
        Python::start(&self.deployment, script, &arguments)
    }

    /// A program that follows a stream of a component.
    pub fn follower(&self, component: &str, prefix: &str, list: &str) -> Python {
        self.python("follower.py", &[component, prefix, list], component)
    }

    /// Sends a command to a component five times and more with one id; the answer.
    pub fn command(&self, component: &str, kind: &str, body: &Value) -> Value {
        let body = body.to_string();
        let arguments = [component, kind, &body, "5"];
        let mut commander = self.python("commander.py", &arguments, component);
        let told = commander.wait("the answer", |told| !told["answer"].is_null());
        assert_eq!(told["same"], true, "a repetition is answered alike: {told}");
        assert_eq!(commander.end(), Some(0));
        told["answer"].clone()
    }

    /// As which instance a client in Rust comes in.
    pub fn options(&self, instance: &str) -> ConnectOptions {
        let mut options = options(&self.deployment, instance);
        if self.way == Way::Tcp {
            options.socket = self.rpc().into();
        }
        options
    }

    /// A service in Python.
    pub fn peer(&self, instance: &str) -> Python {
        let token = options(&self.deployment, instance).token;
        Python::start(
            &self.deployment,
            "peer.py",
            &[&self.rpc(), instance, &token],
        )
    }
}
