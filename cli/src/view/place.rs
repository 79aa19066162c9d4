//! Where a service runs, for who wrote an argument as seen from somewhere else.

use std::path::{Path, PathBuf};

use blackhole_bus_schema::config::{Config, ServiceConfig};
use blackhole_bus_schema::names::ServiceName;

/// An argument that names a file beside the configuration, and not where the
/// service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misplaced {
    /// Whose.
    pub service: ServiceName,
    /// As it is written.
    pub argument: String,
    /// Where the service looks for it.
    pub working_dir: PathBuf,
    /// Where it is.
    pub beside: PathBuf,
}

impl Misplaced {
    /// For a person.
    pub fn text(&self) -> String {
        format!(
            "{} runs in {}, where there is no {}; it is in {}: give it `working_dir: .`, or write \
             \"${{config_dir}}/{}\"",
            self.service,
            self.working_dir.display(),
            self.argument,
            self.beside.display(),
            self.argument.trim_start_matches("./"),
        )
    }
}

/// The arguments that look misplaced, the first of each service. `exists` tells
/// whether there is a file.
pub fn misplaced(config: &Config, dir: &Path, exists: impl Fn(&Path) -> bool) -> Vec<Misplaced> {
    config
        .services
        .iter()
        .filter_map(|(name, service)| of_service(name, service, dir, &exists))
        .collect()
}

fn of_service(
    name: &ServiceName,
    service: &ServiceConfig,
    dir: &Path,
    exists: impl Fn(&Path) -> bool,
) -> Option<Misplaced> {
    let working_dir = PathBuf::from(service.working_dir.as_deref().unwrap_or("/"));
    // The program itself is taken from the configuration's directory already.
    let arguments = service.command.iter().skip(1);
    let looks_like_a_file = |argument: &&String| {
        let path = Path::new(argument.as_str());
        !argument.is_empty()
            && !argument.starts_with('-')
            && path.is_relative()
            && (argument.contains('/') || path.extension().is_some())
    };
    let argument = arguments
        .filter(looks_like_a_file)
        .find(|argument| !exists(&working_dir.join(argument)) && exists(&dir.join(argument)))?;
    Some(Misplaced {
        service: name.clone(),
        argument: argument.clone(),
        working_dir,
        beside: dir.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_that_is_only_beside_the_configuration_is_found() {
        let text = r#"
services:
  lost: {command: [python3, -u, ./app.py, start]}
  found: {command: [python3, app.py], working_dir: /srv/shop}
  whole: {command: [python3, /srv/shop/app.py]}
  plain: {command: [start, app]}
"#;
        let config = Config::parse(text, "test").unwrap();
        let dir = Path::new("/srv/shop");
        let exists = |path: &Path| {
            let path = path.to_string_lossy().replace("/./", "/");
            path == "/srv/shop/app.py" || path == "/srv/shop/app"
        };
        let found = misplaced(&config, dir, exists);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            found[0].text(),
            "lost runs in /, where there is no ./app.py; it is in /srv/shop: give it \
             `working_dir: .`, or write \"${config_dir}/app.py\""
        );
        assert!(misplaced(&config, dir, |_| true).is_empty());
    }
}
