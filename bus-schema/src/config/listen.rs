//! `runtime.orchestrator.listen`: TCP addresses, of the loopback only.

use std::net::SocketAddr;

use super::error::Problem;
use super::section::Field;
use super::tree::Value;
use crate::names::Component;

pub(super) const KEYS: [&str; 5] = [
    "supervisor",
    "process-manager",
    "resource-controller",
    "bridge",
    "rpc",
];

/// Where the parts listen over TCP, beside their sockets in the run directory.
/// All of them are addresses of the loopback, and no two share a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listen {
    /// The supervisor's events; its commands are one port above, as for all components.
    pub supervisor: Option<SocketAddr>,
    /// The process-manager's (of the one without a name).
    pub process_manager: Option<SocketAddr>,
    /// The resource-controller's.
    pub resource_controller: Option<SocketAddr>,
    /// The bridge's own side of the bus.
    pub bridge: Option<SocketAddr>,
    /// Calls between services: the bridge's ROUTER.
    pub rpc: Option<SocketAddr>,
}

impl Listen {
    /// Where a component publishes its events; `None` where it does so on its ipc socket only.
    pub fn events(&self, component: &Component) -> Option<SocketAddr> {
        match component {
            Component::Supervisor => self.supervisor,
            Component::ProcessManager(None) => self.process_manager,
            Component::ProcessManager(Some(_)) => None,
            Component::ResourceController => self.resource_controller,
            Component::Bridge => self.bridge,
        }
    }

    /// Where a component takes commands: one port above its events.
    pub fn commands(&self, component: &Component) -> Option<SocketAddr> {
        let mut address = self.events(component)?;
        address.set_port(address.port().checked_add(1)?);
        Some(address)
    }

    /// The addresses by their keys, in the order of the file's format.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> + use<> {
        let values = [
            self.supervisor,
            self.process_manager,
            self.resource_controller,
            self.bridge,
            self.rpc,
        ];
        KEYS.into_iter()
            .zip(values)
            .filter_map(|(key, value)| Some((key, value?)))
    }
}

/// Reads `listen`.
pub(super) fn listen(field: &Field<'_>) -> Result<Listen, Problem> {
    let section = field.section(&KEYS)?;
    let mut taken: Vec<(SocketAddr, &str)> = Vec::new();
    let mut read = |key: &'static str| {
        let Some(field) = section.get(key) else {
            return Ok(None);
        };
        let address = address(&field)?;
        let mut own = vec![address];
        if key != "rpc" {
            let Some(above) = address.port().checked_add(1) else {
                return Err(field
                    .problem("leaves no port for commands, which come in one above")
                    .hint("give a port below 65535"));
            };
            own.push(SocketAddr::new(address.ip(), above));
        }
        for one in own {
            if let Some((_, other)) = taken.iter().find(|(address, _)| *address == one) {
                let message = format!("port {} is {other}'s already", one.port());
                return Err(field
                    .problem(message)
                    .hint("each component takes two ports: events, and one above it commands"));
            }
            taken.push((one, key));
        }
        Ok(Some(address))
    };
    Ok(Listen {
        supervisor: read("supervisor")?,
        process_manager: read("process-manager")?,
        resource_controller: read("resource-controller")?,
        bridge: read("bridge")?,
        rpc: read("rpc")?,
    })
}

fn address(field: &Field<'_>) -> Result<SocketAddr, Problem> {
    let expected =
        || field.expected("an address of the loopback with a port, for instance 127.0.0.1:7410");
    let Value::Text(_) = &field.node.value else {
        return Err(expected());
    };
    let text = field.text()?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        return Err(match text.strip_prefix("localhost:") {
            Some(port) => expected().hint(format!("write 127.0.0.1:{port}")),
            None => expected(),
        });
    };
    if !address.ip().is_loopback() {
        let message = format!("{} is not an address of the loopback", address.ip());
        return Err(field.problem(message).hint(
            "this version listens on 127.0.0.1 and [::1] only: nothing is encrypted on the way",
        ));
    }
    if address.port() == 0 {
        return Err(expected());
    }
    Ok(address)
}
