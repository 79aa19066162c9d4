//! Checks of the files that services need: where they run, what they are made
//! from, what they are started with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::config::ServiceConfig;
use blackhole_bus_schema::health::ProbeCheck;
use blackhole_bus_schema::process::ReloadAction;
use blackhole_process_manager::environment::{self, DEFAULT_PATH, EnvironmentError, Recipe};
use blackhole_process_manager::shim::hint;
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;

use super::subject::Subject;
use super::user::Runner;
use super::{Check, fail, ok};

/// `PATH` by service.
type Paths = BTreeMap<String, String>;

/// Whether `env_files` can be read and the references in `env` have values. Also
/// the `PATH` that each service will have.
pub(super) fn environments(subject: &Subject<'_>) -> (Vec<Check>, Paths) {
    const WHAT: &str = "environment";
    let (mut checks, mut paths) = (Vec::new(), Paths::new());
    let mut any = false;
    for (name, service) in &subject.document.config.services {
        let sources = subject.sources(service);
        let none = BTreeMap::new();
        // One by one, so that all that is wrong is found.
        for (index, file) in service.settings.env_files.iter().enumerate() {
            any = true;
            let recipe = recipe(&none, std::slice::from_ref(file));
            if let Err(error) = environment::build(&recipe, &sources) {
                let at = subject.of_service(name.as_str(), &["env_files", &index.to_string()]);
                checks.push(wrong(WHAT, error, sources.whose()).at(at));
            }
        }
        for (key, value) in &service.env {
            any |= value.contains("${");
            let one = BTreeMap::from([(key.clone(), value.clone())]);
            if let Err(error) = environment::build(&recipe(&one, &[]), &sources) {
                let at = subject.of_service(name.as_str(), &["env", key]);
                checks.push(wrong(WHAT, error, sources.whose()).at(at));
            }
        }
        let own = service.env.get_key_value("PATH");
        let own = own.map(|(key, value)| (key.clone(), value.clone()));
        let own: BTreeMap<_, _> = own.into_iter().collect();
        let whole = recipe(&own, &service.settings.env_files);
        let made = environment::build(&whole, &sources)
            .or_else(|_| environment::build(&recipe(&none, &[]), &sources));
        if let Some(path) = made.ok().as_ref().and_then(|made| made.get("PATH")) {
            paths.insert(name.to_string(), path.to_owned());
        }
    }
    if checks.is_empty() && any {
        checks.push(ok(WHAT, "all files and references can be read"));
    }
    (checks, paths)
}

fn recipe<'a>(
    env: &'a BTreeMap<String, String>,
    files: &'a [blackhole_bus_schema::process::EnvFile],
) -> Recipe<'a> {
    Recipe {
        env,
        files,
        blackhole: &[],
    }
}

fn wrong(what: &str, error: EnvironmentError, whose: &str) -> Check {
    let failure = error.into_failure();
    let why = match failure.errno {
        0 => String::new(),
        errno => format!(": {}", std::io::Error::from_raw_os_error(errno)),
    };
    let operation = failure
        .operation
        .replace("the process-manager has no", &format!("{whose} has no"));
    fail(what, format!("{operation}{why}"), failure.hint)
}

/// Whether each service may enter its working directory, and read its `stdin`.
pub(super) fn directories(subject: &Subject<'_>, runners: &[(String, Runner)]) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut any = false;
    for (name, service, runner) in each(subject, runners) {
        if let Some(dir) = &service.working_dir {
            any = true;
            let path = Path::new(dir);
            let error = runner.try_as(|| {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty())?;
                rustix::fs::access(path, Access::EXEC_OK)
            });
            if let Some((error, errno)) = failed(error) {
                let advice = hint::directory(path, errno, &runner.who);
                let at = subject.of_service(name, &["working_dir"]);
                checks.push(fail("working directory", format!("{dir}: {error}"), advice).at(at));
            }
        }
        if let Some(file) = &service.settings.stdin {
            let path = Path::new(file);
            let error = runner.try_as(|| rustix::fs::access(path, Access::READ_OK));
            if let Some((error, errno)) = failed(error) {
                let advice = hint::input(path, errno, &runner.who);
                let at = subject.of_service(name, &["stdin"]);
                checks.push(fail("standard input", format!("{file}: {error}"), advice).at(at));
            }
        }
    }
    if checks.is_empty() && any {
        checks.push(ok("working directory", "each can be entered"));
    }
    checks
}

/// Whether there are the programs that services name, and their users may execute them.
pub(super) fn programs(
    subject: &Subject<'_>,
    runners: &[(String, Runner)],
    paths: &Paths,
) -> Vec<Check> {
    const WHAT: &str = "programs";
    let mut checks = Vec::new();
    for (name, service, runner) in each(subject, runners) {
        let path = paths.get(name).map_or(DEFAULT_PATH, String::as_str);
        for (keys, command) in commands(service) {
            let Some(program) = command.first() else {
                continue;
            };
            if let Err((found, advice)) = executable(program, path, runner) {
                checks.push(fail(WHAT, found, advice).at(subject.of_service(name, &keys)));
            }
        }
    }
    if checks.is_empty() && !subject.document.config.services.is_empty() {
        checks.push(ok(WHAT, "all are there and can be executed"));
    }
    checks
}

/// All that is executed for a service, and the keys where it stands.
fn commands(service: &ServiceConfig) -> Vec<(Vec<&'static str>, &[String])> {
    let mut all = vec![(vec!["command"], service.command.as_slice())];
    let hooks = &service.settings.hooks;
    for (key, hook) in [
        ("before_start", &hooks.before_start),
        ("after_start", &hooks.after_start),
        ("before_stop", &hooks.before_stop),
        ("after_exit", &hooks.after_exit),
    ] {
        all.extend(
            hook.as_ref()
                .map(|hook| (vec!["hooks", key], hook.command.as_slice())),
        );
    }
    let reload = service
        .settings
        .reload
        .as_ref()
        .map(|reload| &reload.action);
    if let Some(ReloadAction::Command(command)) = reload {
        all.push((vec!["reload", "command"], command));
    }
    let probes = &service.probes;
    for (key, probe) in [
        ("startup", &probes.startup),
        ("liveness", &probes.liveness),
        ("readiness", &probes.readiness),
    ] {
        if let Some(ProbeCheck::Exec(command)) = probe.as_ref().map(|probe| &probe.check) {
            all.push((vec!["health", key, "exec"], command));
        }
    }
    all
}

/// What is wrong with a program, and what to do about it.
fn executable(program: &str, path: &str, runner: &Runner) -> Result<(), (String, String)> {
    let try_one = |file: &Path| {
        failed(runner.try_as(|| {
            // As execve(2) has it: a directory, too, may be passed and not executed.
            match std::fs::metadata(file) {
                Ok(there) if there.is_file() => rustix::fs::access(file, Access::EXEC_OK),
                Ok(_) => Err(Errno::ACCESS),
                Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }))
    };
    let wrong = |file: &Path, (error, errno): (String, i32)| {
        let advice = hint::exec(file, errno, &runner.who);
        Err((format!("{}: {error}", file.display()), advice))
    };
    if program.contains('/') {
        let file = Path::new(program);
        return try_one(file).map_or(Ok(()), |error| wrong(file, error));
    }
    let mut forbidden: Option<(PathBuf, (String, i32))> = None;
    for dir in path.split(':').filter(|dir| dir.starts_with('/')) {
        let file = Path::new(dir).join(program);
        match try_one(&file) {
            None => return Ok(()),
            Some(error) if error.1 == Errno::ACCESS.raw_os_error() && file.is_file() => {
                forbidden = Some((file, error));
            }
            Some(_) => {}
        }
    }
    match forbidden {
        Some((file, error)) => wrong(&file, error),
        None => Err((
            format!("{program} is not in PATH ({path})"),
            "install it, or give its absolute path".to_owned(),
        )),
    }
}

/// The error in words and its number.
fn failed<T>(result: std::io::Result<rustix::io::Result<T>>) -> Option<(String, i32)> {
    let error = match result {
        Ok(Ok(_)) => return None,
        Ok(Err(errno)) => std::io::Error::from(errno),
        Err(error) => error,
    };
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    Some((text.to_lowercase(), error.raw_os_error().unwrap_or(0)))
}

/// The services whose users are known.
fn each<'a>(
    subject: &'a Subject<'_>,
    runners: &'a [(String, Runner)],
) -> impl Iterator<Item = (&'a str, &'a ServiceConfig, &'a Runner)> {
    runners.iter().filter_map(|(name, runner)| {
        let services = &subject.document.config.services;
        let (_, service) = services.iter().find(|(known, _)| known.as_str() == name)?;
        Some((name.as_str(), service, runner))
    })
}
