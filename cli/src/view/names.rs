//! Names given on the command line against the names there are.

use std::collections::BTreeSet;
use std::fmt;

use blackhole_bus_schema::names::{InstanceName, ServiceName};

use crate::error::Error;

/// A service (all its instances) or one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// All instances of a service.
    Service(ServiceName),
    /// One instance.
    Instance(InstanceName),
}

impl Name {
    /// Reads a name as given; a wrong one is a usage error.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parsed = if text.contains('.') {
            text.parse().map(Self::Instance)
        } else {
            text.parse().map(Self::Service)
        };
        parsed.map_err(|error| Error::Usage(error.to_string()))
    }

    /// Whether it means this instance.
    pub fn covers(&self, instance: &InstanceName) -> bool {
        match self {
            Self::Service(service) => instance.service() == service,
            Self::Instance(own) => own == instance,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => service.fmt(formatter),
            Self::Instance(instance) => instance.fmt(formatter),
        }
    }
}

/// Which instances are meant; none given means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    names: Vec<(Name, String)>,
}

impl Filter {
    /// Reads the names as given.
    pub fn parse(names: &[String]) -> Result<Self, Error> {
        let names = names
            .iter()
            .map(|text| Ok((Name::parse(text)?, text.clone())))
            .collect::<Result<_, Error>>()?;
        Ok(Self { names })
    }

    /// Whether all are meant.
    pub fn is_all(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether this instance is meant.
    pub fn covers(&self, instance: &InstanceName) -> bool {
        self.names.is_empty() || self.names.iter().any(|(name, _)| name.covers(instance))
    }

    /// Whether an instance of this service is meant.
    pub fn touches(&self, service: &ServiceName) -> bool {
        self.names.is_empty()
            || self.names.iter().any(|(name, _)| match name {
                Name::Service(own) => own == service,
                Name::Instance(instance) => instance.service() == service,
            })
    }

    /// The instances that are meant. A name that means none of them is an
    /// error that lists those there are.
    pub fn select<'a>(
        &self,
        known: impl IntoIterator<Item = &'a InstanceName>,
    ) -> Result<Vec<InstanceName>, Error> {
        let known: BTreeSet<&InstanceName> = known.into_iter().collect();
        for (name, text) in &self.names {
            if !known.iter().any(|instance| name.covers(instance)) {
                return Err(not_found(name, text, &known));
            }
        }
        Ok(known
            .into_iter()
            .filter(|instance| self.covers(instance))
            .cloned()
            .collect())
    }
}

fn not_found(name: &Name, text: &str, known: &BTreeSet<&InstanceName>) -> Error {
    let (what, names): (_, BTreeSet<String>) = match name {
        Name::Service(_) => (
            "service",
            known
                .iter()
                .map(|instance| instance.service().to_string())
                .collect(),
        ),
        Name::Instance(instance) => {
            let same: BTreeSet<String> = known
                .iter()
                .filter(|other| other.service() == instance.service())
                .map(ToString::to_string)
                .collect();
            let all = || known.iter().map(ToString::to_string).collect();
            ("instance", if same.is_empty() { all() } else { same })
        }
    };
    Error::NotFound {
        what,
        name: text.to_owned(),
        known: names.into_iter().collect(),
    }
}

/// Names of services for commands that are about whole services.
pub fn services(names: &[String]) -> Result<Vec<ServiceName>, Error> {
    names
        .iter()
        .map(|text| match Name::parse(text)? {
            Name::Service(service) => Ok(service),
            Name::Instance(instance) => Err(Error::Usage(format!(
                "{text:?} is an instance; this command takes whole services: write {:?}",
                instance.service().as_str()
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<InstanceName> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn filter(list: &[&str]) -> Filter {
        Filter::parse(
            &list
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap()
    }

    #[test]
    fn a_service_means_all_its_instances() {
        let known = names(&["db.1", "web.1", "web.2"]);
        assert_eq!(
            filter(&["web"]).select(&known).unwrap(),
            names(&["web.1", "web.2"])
        );
        assert_eq!(
            filter(&["web.2", "db"]).select(&known).unwrap(),
            names(&["db.1", "web.2"])
        );
        assert_eq!(filter(&[]).select(&known).unwrap().len(), 3);
    }

    #[test]
    fn an_unknown_name_is_told_with_the_known_ones() {
        let known = names(&["db.1", "web.1", "web.2"]);
        let error = filter(&["web.9"]).select(&known).unwrap_err();
        assert_eq!(error.exit() as u8, 3);
        assert!(
            error.report().contains("known: web.1, web.2"),
            "{}",
            error.report()
        );
        let error = filter(&["wep"]).select(&known).unwrap_err();
        assert!(
            error.report().contains("known: db, web"),
            "{}",
            error.report()
        );
    }

    #[test]
    fn bad_names_are_usage_errors() {
        for bad in ["Web", "web.0", "", "../x"] {
            assert_eq!(
                Filter::parse(&[bad.to_owned()]).unwrap_err().exit() as u8,
                2,
                "{bad:?}"
            );
        }
        assert!(
            services(&["web.1".to_owned()])
                .unwrap_err()
                .to_string()
                .contains("write \"web\"")
        );
    }
}
