//! Validated names. A value of one of these types is always well-formed, so
//! that it can stand in a topic, a path or a table without another check.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest service, manager or client name, in bytes. With the index of an
/// instance and a suffix it still fits in `NAME_MAX` (255) and in a cgroup's name.
pub const MAX_NAME_BYTES: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than [`MAX_NAME_BYTES`].
    #[error("{name:?} is {bytes} bytes long, a name has at most {MAX_NAME_BYTES}")]
    TooLong {
        /// The text, cut to its first characters.
        name: String,
        /// Its length in bytes.
        bytes: usize,
    },
    /// A character that a name cannot hold.
    #[error(
        "{name:?}: character {character:?} at position {position} is not allowed \
         (a name begins with a-z or 0-9 and goes on with a-z, 0-9, '-' and '_')"
    )]
    Character {
        /// The whole text.
        name: String,
        /// The first offending character.
        character: char,
        /// Its position, counted in characters from 1.
        position: usize,
    },
    /// An instance needs `<service>.<n>` with n from 1.
    #[error("{0:?} is not an instance: write <service>.<n> with n from 1, for instance web.1")]
    Instance(String),
    /// None of the four components.
    #[error(
        "{0:?} is not a component: one of supervisor, process-manager, \
         process-manager.<name>, resource-controller, bridge"
    )]
    Component(String),
}

fn validate(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong {
            name: text.chars().take(24).collect::<String>() + "…",
            bytes: text.len(),
        });
    }
    for (index, character) in text.chars().enumerate() {
        let ok = match character {
            'a'..='z' | '0'..='9' => true,
            '-' | '_' => index > 0,
            _ => false,
        };
        if !ok {
            return Err(NameError::Character {
                name: text.to_owned(),
                character,
                position: index + 1,
            });
        }
    }
    Ok(())
}

macro_rules! string_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! simple_name {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                validate(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        string_serde!($name);
    };
}

simple_name!(
    /// The name of a service, as it stands in `blackhole.yaml`.
    ///
    /// ```
    /// use blackhole_bus_schema::names::ServiceName;
    /// assert!("identity".parse::<ServiceName>().is_ok());
    /// assert!("web-2_b".parse::<ServiceName>().is_ok());
    /// assert!("".parse::<ServiceName>().is_err());
    /// assert!("Web".parse::<ServiceName>().is_err());
    /// assert!("a.b".parse::<ServiceName>().is_err());
    /// assert!("-a".parse::<ServiceName>().is_err());
    /// assert!("../etc".parse::<ServiceName>().is_err());
    /// ```
    ServiceName
);
simple_name!(
    /// The name of one of several process-managers.
    ManagerName
);
simple_name!(
    /// A client of the bus; unique among those that run at one time.
    ClientName
);
simple_name!(
    /// A group of services with a common restart strategy.
    GroupName
);

impl ClientName {
    /// A fresh name `<prefix>-<8 hex digits>`; `prefix` is a program's short name.
    pub fn fresh(prefix: &str) -> Self {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let prefix = if validate(prefix).is_ok() && prefix.len() <= 32 {
            prefix
        } else {
            "client"
        };
        Self(format!("{prefix}-{}", &id[id.len() - 8..]))
    }
}

/// One running copy of a service: `<service>.<n>`, n from 1.
///
/// ```
/// use blackhole_bus_schema::names::InstanceName;
/// let instance: InstanceName = "web.2".parse().unwrap();
/// assert_eq!(instance.service().as_str(), "web");
/// assert_eq!(instance.index(), 2);
/// assert_eq!(instance.to_string(), "web.2");
/// for bad in ["web", "web.0", "web.01", "web.-1", "web.x", ".1", "web.1.2", "web.99999999999"] {
///     assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName {
    service: ServiceName,
    index: u32,
}

impl InstanceName {
    /// Instance number `index` of `service`; `None` for index 0.
    pub fn new(service: ServiceName, index: u32) -> Option<Self> {
        (index > 0).then_some(Self { service, index })
    }

    /// The service this is a copy of.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The number of the copy, from 1.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Instance(text.chars().take(80).collect());
        let (service, index) = text.split_once('.').ok_or_else(wrong)?;
        if index.starts_with('0') || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let index = index.parse().map_err(|_| wrong())?;
        Self::new(service.parse()?, index).ok_or_else(wrong)
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.service, self.index)
    }
}

string_serde!(InstanceName);

/// One of the daemons. There may be several process-managers, told apart by name.
///
/// ```
/// use blackhole_bus_schema::names::Component;
/// for name in ["supervisor", "process-manager", "process-manager.gpu", "resource-controller", "bridge"] {
///     assert_eq!(name.parse::<Component>().unwrap().to_string(), name);
/// }
/// assert!("process-manager.".parse::<Component>().is_err());
/// assert!("systemd".parse::<Component>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Decides.
    Supervisor,
    /// Acts; `None` is the unnamed one.
    ProcessManager(Option<ManagerName>),
    /// Limits and measures.
    ResourceController,
    /// Carries RPC.
    Bridge,
}

impl Component {
    /// The four components of a whole deployment, in the order in which `up` starts them.
    pub const ALL: [Component; 4] = [
        Component::Bridge,
        Component::ResourceController,
        Component::ProcessManager(None),
        Component::Supervisor,
    ];
}

impl FromStr for Component {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "supervisor" => Ok(Self::Supervisor),
            "process-manager" => Ok(Self::ProcessManager(None)),
            "resource-controller" => Ok(Self::ResourceController),
            "bridge" => Ok(Self::Bridge),
            _ => match text.strip_prefix("process-manager.") {
                Some(name) => Ok(Self::ProcessManager(Some(name.parse()?))),
                None => Err(NameError::Component(text.chars().take(80).collect())),
            },
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Supervisor => formatter.write_str("supervisor"),
            Self::ProcessManager(None) => formatter.write_str("process-manager"),
            Self::ProcessManager(Some(name)) => write!(formatter, "process-manager.{name}"),
            Self::ResourceController => formatter.write_str("resource-controller"),
            Self::Bridge => formatter.write_str("bridge"),
        }
    }
}

string_serde!(Component);

/// The number of a spawn decision for one instance. The supervisor persists it
/// and raises it with each decision; a process-manager refuses what is older
/// than what it has seen, so that a repeated or late command starts nothing twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
