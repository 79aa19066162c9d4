//! What every command needs: directories, configuration, forms of output.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blackhole_bus_schema::config::{Config, Document};
use blackhole_bus_schema::dirs::Dirs;

use crate::args::{Format, Global};
use crate::error::Error;
use crate::keeper_file::KeeperFile;
use crate::out::Style;
use crate::view::place::{self, Misplaced};

/// Where a configuration is looked for when none is named.
const USUAL: [&str; 2] = ["blackhole.yaml", "/etc/blackhole/blackhole.yaml"];

/// What every command needs.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where the daemons are. Nothing in them is created by asking.
    pub dirs: Dirs,
    /// Form of the result.
    pub format: Format,
    /// Whether to do without daemons.
    pub offline: bool,
    /// Colours of standard output.
    pub style: Style,
    /// Colours of standard error.
    pub style_err: Style,
    timeout: Option<Duration>,
    config: Option<PathBuf>,
}

impl Context {
    /// Resolves the global flags.
    ///
    /// # Errors
    /// When the directories cannot be told or are too long for sockets.
    pub fn new(global: Global) -> Result<Self, Error> {
        Ok(Self {
            dirs: Dirs::resolve(global.run_dir, global.state_dir)?,
            format: global.output,
            offline: global.offline,
            style: Style::stdout(),
            style_err: Style::stderr(),
            timeout: global.timeout,
            config: global.config,
        })
    }

    /// The time allowed by the operator, or `usual`.
    pub fn timeout(&self, usual: Duration) -> Duration {
        self.timeout.unwrap_or(usual)
    }

    /// The time allowed by the operator, if any.
    pub fn own_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The configuration file as it was named, if it was.
    pub fn named_config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The configuration file, absolute: as named, else the one that the running
    /// (or last) keeper was given, else the first of the usual places.
    ///
    /// # Errors
    /// When none was named and none is there.
    pub fn config_path(&self) -> Result<PathBuf, Error> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|source| Error::io("resolve", path, source))
        };
        if let Some(path) = &self.config {
            return absolute(path);
        }
        let kept = KeeperFile::read(&self.dirs)
            .map(|kept| kept.config)
            .filter(|path| path.is_file());
        if let Some(path) = kept {
            return Ok(path);
        }
        match USUAL.iter().map(Path::new).find(|path| path.is_file()) {
            Some(path) => absolute(path),
            None => Err(Error::NoConfig {
                tried: USUAL.iter().map(ToString::to_string).collect(),
            }),
        }
    }

    /// [`Context::config_path`] for `up`: what an earlier keeper used does not count.
    ///
    /// # Errors
    /// When none was named and none is there.
    pub fn config_path_for_up(&self) -> Result<PathBuf, Error> {
        if self.config.is_none()
            && let Some(path) = USUAL.iter().map(Path::new).find(|path| path.is_file())
        {
            return std::path::absolute(path).map_err(|source| Error::io("resolve", path, source));
        }
        self.config_path()
    }

    /// Arguments of services that are only found beside the configuration.
    pub fn misplaced(path: &Path, config: &Config) -> Vec<Misplaced> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        place::misplaced(config, dir, |path| path.exists())
    }

    /// The checked configuration and where it came from.
    ///
    /// # Errors
    /// When there is none or it is wrong.
    pub fn config(&self) -> Result<(PathBuf, Config), Error> {
        let (path, document) = self.document()?;
        Ok((path, document.config))
    }

    /// [`Context::config`] with what only people and sockets need.
    ///
    /// # Errors
    /// When there is none or it is wrong.
    pub fn document(&self) -> Result<(PathBuf, Document), Error> {
        let path = self.config_path()?;
        let document = Document::load(&path).map_err(|first| Error::of_config(&path, first))?;
        Ok((path, document))
    }
}
