"""Blackhole and its peers, each with its configuration, its fastest control channel
and its command line.

A peer gets a directory of its own and services to run, all of them the same command
with a name each. What it writes there and whom it starts ends with it.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import wire

PEERS = {}


def peer(cls):
    """Names a class of peers."""
    PEERS[cls.name] = cls
    return cls


def await_(condition, what, patience=30.0, pause=0.001):
    """Waits for a condition that nobody tells of."""
    until = time.monotonic() + patience
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(pause)


class Peer:
    """What all have in common. `services` maps names to commands."""

    name = ""
    programs = ()  # needed, the manager first
    channel = None  # how a start is asked for, None where it cannot be
    cli = None  # the command line's start
    log = None  # how output is captured, None where it is not
    helper = None  # name of the process that stands over each service, if any
    settle = 0.3  # seconds that a service has to run for its restart to be the first
    rest = 0  # seconds that it has to be down for a start not to be held back

    def __init__(self, home, mark, tools):
        self.home, self.tools = home, tools
        self.env = dict(os.environ, COMPARE_MARK=mark, HOME=home)
        if tools.peers:
            self.env["PATH"] = f"{tools.peers}/bin:{self.env['PATH']}"
        os.makedirs(home)

    @classmethod
    def missing(cls, path):
        """The first program that is not there."""
        return next((name for name in cls.programs if not shutil.which(name, path=path)), None)

    def which(self, program):
        """Where a program is."""
        return shutil.which(program, path=self.env["PATH"])

    def path(self, *parts):
        """A path in the peer's directory."""
        return os.path.join(self.home, *parts)

    def text(self, name, text, mode=0o644):
        """Writes a file there."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def spawn(self, argv):
        """A process of the peer that stays."""
        with open(self.path("manager.out"), "ab") as out:
            return subprocess.Popen(argv, env=self.env, cwd=self.home, stdin=subprocess.DEVNULL,
                                    stdout=out, stderr=out, start_new_session=True)

    def run(self, argv):
        """A process of the peer that ends."""
        with open(self.path("client.out"), "w+b") as out:
            done = subprocess.run(argv, env=self.env, cwd=self.home, stdin=subprocess.DEVNULL,
                                  stdout=out, stderr=out, timeout=120, check=False)
            out.seek(0)
            if done.returncode:
                raise RuntimeError(f"{argv[0]}: {done.returncode}: {out.read()[-300:].decode(errors='replace')}")

    # What each peer has to say:

    def launch(self, services, auto=False, capture=False):
        """Configures and starts the manager; with `auto` its services, too."""
        raise NotImplementedError

    def relaunch(self):
        """Starts the manager again after it was killed, as its operator would."""
        raise NotImplementedError

    def starter(self, name):
        """Everything ready; returns what sends the start (and nothing else)."""
        raise NotImplementedError

    def down(self, name):
        """Stops a service; returns when the manager knows that it is stopped. A peer has this or `many_down`."""
        self.many_down([name])

    def cli_start(self, name):
        """The command line of a start."""
        raise NotImplementedError

    def many_starter(self, names):
        """Everything ready; returns what starts all of them."""
        starters = [self.starter(name) for name in names]
        return lambda: [start() for start in starters]

    def many_down(self, names):
        """Stops all of them."""
        for name in names:
            self.down(name)

    def log_files(self, name):
        """Where the output of a service is."""
        return [self.path(name + ".log")]


class Scanned(Peer):
    """What runit and s6 have in common: directories, a process and a FIFO for each service."""

    def write(self, services, auto, capture):
        """A directory for each service. `#!` with one argument saves a shell that would only exec."""
        os.makedirs(self.path("services"), exist_ok=True)
        for name, command in services.items():
            line = "#!" if len(command) == 2 else "#!/bin/sh\nexec "
            self.text(f"new/{name}/run", f"{line}{' '.join(command)}\n", 0o755)
            if not auto:
                self.text(f"new/{name}/down", "")
            if capture:
                os.makedirs(self.path("logs", name))
                self.text(f"new/{name}/log/run", self.log_run(self.path("logs", name)), 0o755)
            os.rename(self.path("new", name), self.path("services", name))
        self.names = list(services)
        self.fifos = {}

    def log_run(self, directory):
        raise NotImplementedError

    def launch(self, services, auto=False, capture=False):
        self.write(services, auto, capture)
        self.relaunch()
        for name in self.names:
            await_(lambda: self.supervised(name), f"nobody supervises {name}", pause=0.01)

    def control(self, name, letter):
        if name not in self.fifos:
            path = self.path("services", name, "supervise/control")
            self.fifos[name] = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(self.fifos[name], letter)

    def supervised(self, name):
        try:
            self.control(name, b"")
            return True
        except OSError:
            return False

    def starter(self, name):
        self.control(name, b"")
        fifo = self.fifos[name]
        return lambda: os.write(fifo, b"u")

    def many_down(self, names):
        for name in names:
            self.control(name, b"d")
        for name in names:
            await_(lambda: self.is_down(name), f"{name} does not stop")

    def is_down(self, name):
        raise NotImplementedError

    def log_files(self, name):
        directory = self.path("logs", name)
        return [os.path.join(directory, file) for file in os.listdir(directory)
                if file == "current" or file.startswith("@")]


@peer
class Runit(Scanned):
    name = "runit"
    programs = ("runsvdir", "runsv", "sv", "svlogd")
    channel = "FIFO supervise/control"
    cli = "sv up"
    log = "svlogd, timestamped"
    helper = "runsv"
    settle = rest = 1.15  # runsv waits for a second between two starts

    def log_run(self, directory):
        with open(os.path.join(directory, "config"), "w", encoding="utf-8") as file:
            file.write("s16777215\nn1000\n")
        return f"#!/bin/sh\nexec svlogd -tt -b 65536 {directory}\n"

    def relaunch(self):
        self.spawn([self.which("runsvdir"), self.path("services")])

    def is_down(self, name):
        with open(self.path("services", name, "supervise/stat"), encoding="utf-8") as file:
            return file.read().startswith("down") and "want" not in file.read()

    def cli_start(self, name):
        return [self.which("sv"), "up", self.path("services", name)]


@peer
class S6(Scanned):
    name = "s6"
    programs = ("s6-svscan", "s6-supervise", "s6-svc", "s6-log")
    channel = "FIFO supervise/control"
    cli = "s6-svc -u"
    log = "s6-log, timestamped"
    helper = "s6-supervise"
    settle = rest = 1.15  # as runsv

    def log_run(self, directory):
        return f"#!/bin/sh\nexec s6-log -b n1000 s16777215 T {directory}\n"

    def relaunch(self):
        self.spawn([self.which("s6-svscan"), "-c", "2200", self.path("services")])

    def is_down(self, name):
        with open(self.path("services", name, "supervise/status"), "rb") as file:
            return file.read()[24:32] == bytes(8)  # the pid

    def cli_start(self, name):
        return [self.which("s6-svc"), "-u", self.path("services", name)]


@peer
class Dinit(Peer):
    name = "dinit"
    programs = ("dinit", "dinitctl")
    channel = "control socket"
    cli = "dinitctl start"

    def launch(self, services, auto=False, capture=False):
        boot = "type = internal\n"
        for name, command in services.items():
            # restart-delay is 0.2 s as it comes: without it, so that its best is measured.
            self.text(f"d/{name}", f"type = process\ncommand = {' '.join(command)}\n"
                      "restart = yes\nsmooth-recovery = yes\nrestart-delay = 0\n"
                      "restart-limit-interval = 0\n")
            boot += f"waits-for: {name}\n" if auto else ""
        self.text("d/boot", boot)
        self.relaunch()
        self.socket = wire.Dinit(self.path("ctl"))

    def relaunch(self):
        self.spawn([self.which("dinit"), "-u", "-q", "-d", self.path("d"), "-p", self.path("ctl")])

    def starter(self, name):
        data = self.socket.command(wire.Dinit.START, name)
        return lambda: self.socket.sock.sendall(data)

    def many_starter(self, names):
        data = b"".join(self.socket.command(wire.Dinit.START, name) for name in names)
        return lambda: self.socket.sock.sendall(data)

    def many_down(self, names):
        self.socket.stop(names)

    def cli_start(self, name):
        return [self.which("dinitctl"), "-u", "-p", self.path("ctl"), "start", name]


@peer
class Supervisord(Peer):
    name = "supervisord"
    programs = ("supervisord", "supervisorctl")
    channel = "XML-RPC, Unix socket"
    cli = "supervisorctl start"
    log = "raw"
    answer = None  # to a start, not read yet

    def launch(self, services, auto=False, capture=False):
        text = (f"[supervisord]\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={self.path('pid')}\n"
                "nodaemon=true\nminfds=8192\n"
                f"[unix_http_server]\nfile={self.path('s')}\n[supervisorctl]\nserverurl=unix://{self.path('s')}\n"
                "[rpcinterface:supervisor]\n"
                "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n")
        for name, command in services.items():
            log = self.path(name + ".log") if capture else "NONE"
            text += (f"[program:{name}]\ncommand={' '.join(command)}\nautostart={str(auto).lower()}\n"
                     f"autorestart=true\nstartsecs=0\nstdout_logfile={log}\nstdout_logfile_maxbytes=0\n"
                     "stderr_logfile=NONE\n")
        text += f"[group:all]\nprograms={','.join(services)}\n"
        self.text("supervisord.conf", text)
        self.relaunch()
        self.rpc = wire.Supervisord(self.path("s"))

    def relaunch(self):
        self.spawn([self.which("supervisord"), "-c", self.path("supervisord.conf")])

    def starter(self, name):
        sock, data = self.rpc.command("supervisor.startProcess", f"all:{name}", False)
        self.answer = sock
        return lambda: sock.sendall(data)

    def many_starter(self, names):
        sock, data = self.rpc.command("supervisor.startProcessGroup", "all", False)
        self.answer = sock
        return lambda: sock.sendall(data)

    def down(self, name):
        if self.answer:
            self.rpc.wait(self.answer)
            self.answer = None
        self.rpc.request("supervisor.stopProcess", f"all:{name}", True)

    def many_down(self, names):
        self.rpc.wait(self.answer)
        self.answer = None
        self.rpc.request("supervisor.stopProcessGroup", "all", True)

    def cli_start(self, name):
        self.answer = None
        return [self.which("supervisorctl"), "-c", self.path("supervisord.conf"), "start", f"all:{name}"]


@peer
class Circus(Peer):
    name = "circus"
    programs = ("circusd", "circusctl")
    channel = "ZeroMQ"
    cli = "circusctl start"
    log = "raw"
    id = None  # of a start whose answer has not been read

    def launch(self, services, auto=False, capture=False):
        text = (f"[circus]\nendpoint = ipc://{self.path('e')}\npubsub_endpoint = ipc://{self.path('p')}\n"
                "statsd = false\ncheck_delay = 0.1\n")
        # It starts many at once only where they are processes of one watcher.
        self.together = len(services) > 1 and not auto
        for name, command in [("all", services["m0"])] if self.together else services.items():
            text += f"[watcher:{name}]\nnumprocesses = {len(services) if self.together else 1}\n"
            text += (f"cmd = {command[0]}\nargs = {' '.join(command[1:])}\n"
                     f"autostart = {auto}\ncopy_env = True\n")
            text += (f"stdout_stream.class = FileStream\nstdout_stream.filename = {self.path(name + '.log')}\n"
                     if capture else "")
        self.text("circus.ini", text)
        self.relaunch()
        self.link = wire.Circus(self.path("e"))
        self.link.request("list")

    def relaunch(self):
        self.spawn([self.which("circusd"), "--log-level", "ERROR", self.path("circus.ini")])

    def starter(self, name):
        data, self.id = self.link.command("start", name=name, waiting=True)
        return lambda: self.link.send(data)

    def many_starter(self, names):
        return self.starter("all")

    def down(self, name):
        if self.id:
            self.link.wait(self.id)
            self.id = None
        self.link.request("stop", name=name, waiting=True)

    def many_down(self, names):
        self.down("all")

    def cli_start(self, name):
        self.id = None
        return [self.which("circusctl"), "--endpoint", f"ipc://{self.path('e')}", "start", name, "--waiting"]


@peer
class Pm2(Peer):
    name = "pm2"
    programs = ("pm2",)
    channel = "rpc.sock"
    cli = "pm2 start"
    log = "raw"
    settle = 1.1  # one that ran for less than a second counts as unstable

    def launch(self, services, auto=False, capture=False):
        self.env.update(PM2_HOME=self.path("h"), PM2_DISABLE_VERSION_CHECK="true")
        apps = [{
            "name": name, "script": command[0], "args": command[1:], "interpreter": "none",
            "exec_mode": "fork", "autorestart": True, "max_restarts": 100000, "merge_logs": True,
            "out_file": self.path(name + ".log") if capture else "/dev/null", "error_file": "/dev/null",
        } for name, command in services.items()]
        self.text("apps.json", json.dumps({"apps": apps}))
        self.run([self.which("pm2"), "start", self.path("apps.json")])
        self.run([self.which("pm2"), "save"])
        self.rpc = wire.Pm2(self.path("h/rpc.sock"))
        self.ids = {app["name"]: app["pm_id"] for app in self.rpc.request("getMonitorData", {})[0]}
        if not auto:
            self.many_down(services)

    def relaunch(self):
        self.run([self.which("pm2"), "resurrect"])

    def starter(self, name):
        data, self.id = self.rpc.command("startProcessId", self.ids[name])
        return lambda: self.rpc.send(data)

    def many_starter(self, names):
        calls = [self.rpc.command("startProcessId", self.ids[name]) for name in names]
        self.id = calls[-1][1]
        data = b"".join(data for data, _ in calls)
        return lambda: self.rpc.send(data)

    def many_down(self, names):
        for name in names:
            self.rpc.request("stopProcessId", self.ids[name])

    def cli_start(self, name):
        return [self.which("pm2"), "start", name]


@peer
class Shep(Peer):
    name = "shep"
    programs = ("shep",)
    channel = "shep.sock"
    cli = "shep start"
    log = "raw"
    settle = 1.1

    def launch(self, services, auto=False, capture=False):
        self.env["SHEP_HOME"] = self.path("h")
        os.makedirs(self.path("h"))
        text = ""
        for name, command in services.items():
            text += (f"[[app]]\nname = \"{name}\"\nscript = \"{command[0]}\"\n"
                     f"args = {json.dumps(command[1:])}\nautorestart = true\nmax_restarts = 100000\n")
            if not capture:
                text += "out_file = \"/dev/null\"\nerr_file = \"/dev/null\"\n"
        self.text("Flockfile.toml", text)
        self.run([self.which("shep"), "start" if auto else "add", self.path("Flockfile.toml")])
        self.link = wire.Shep(self.path("h/run/shep.sock"))

    def relaunch(self):
        self.run([self.which("shep"), "start", self.path("Flockfile.toml")])

    def starter(self, name):
        data, self.id = self.link.command("restart", {"kind": "name", "value": name})
        return lambda: self.link.send(data)

    def many_starter(self, names):
        data, self.id = self.link.command("restart", {"kind": "all"})
        return lambda: self.link.send(data)

    def down(self, name):
        self.link.request("stop", {"kind": "name", "value": name})

    def many_down(self, names):
        self.link.request("stop", {"kind": "all"})

    def cli_start(self, name):
        return [self.which("shep"), "start", name]

    def log_files(self, name):
        directory = self.path("h/logs")
        return [os.path.join(directory, file) for file in os.listdir(directory) if file.startswith(name)]


@peer
class Horust(Peer):
    name = "horust"
    programs = ("horust",)
    log = "raw"

    def launch(self, services, auto=False, capture=False):
        for name, command in services.items():
            log = self.path(name + ".log") if capture else "/dev/null"
            self.text(f"s/{name}.toml", f"command = \"{' '.join(command)}\"\nstdout = \"{log}\"\n"
                      "stderr = \"/dev/null\"\n[restart]\nstrategy = \"always\"\nbackoff = \"0s\"\n"
                      "attempts = 1000000\n[environment]\nkeep-env = true\n")
        os.makedirs(self.path("u"))
        if auto:
            self.relaunch()

    def relaunch(self):
        self.spawn([self.which("horust"), "--services-path", self.path("s"),
                    "--uds-folder-path", self.path("u")])

    def many_starter(self, names):
        """It starts everything when it is started: from there, then."""
        return self.relaunch


@peer
class Blackhole(Peer):
    name = "blackhole"
    programs = ("blackhole", "blackhole-supervisor", "blackhole-process-manager", "blackhole-shim",
                "blackhole-resource-controller", "blackhole-bridge")
    channel = "bus"
    cli = "blackhole start"
    log = "timestamped"
    id = None  # of a start whose answer has not been read
    helper = "blackhole-shim"
    settle = 0.4

    def __init__(self, home, mark, tools):
        super().__init__(home, mark, tools)
        self.env["PATH"] = f"{tools.blackhole}:{self.env['PATH']}"
        # As on a host: in memory.
        self.run_dir = tools.memory(self)
        self.directories = ["--run-dir", self.run_dir, "--state-dir", self.path("state")]

    def launch(self, services, auto=False, capture=False):
        # JSON is YAML.
        config = {
            "runtime": {"orchestrator": {
                "max_processes": 100000, "restart_burst": 100000,
                "resource_limits": {"default_cpu_percent": 100, "default_memory_mb": 64,
                                    "default_io_weight": 100},
                "restart_policy": {"max_attempts": 10000, "initial_backoff": "1ms", "max_backoff": "1ms",
                                   "jitter": "0%", "reset_after": "1ms"}}},
            "services": {name: {"command": command, "autostart": auto, "restart": {"policy": "always"},
                                "logs": {"max_files": 1000, "compress": False}}
                         for name, command in services.items()}}
        self.text("blackhole.yaml", json.dumps(config))
        self.relaunch()
        self.bus = wire.Bus(self.run_dir, "supervisor")

    def relaunch(self):
        self.run([self.which("blackhole"), *self.directories, "-c", self.path("blackhole.yaml"), "up", "-d"])

    def starter(self, name):
        return self.many_starter([name])

    def many_starter(self, names):
        target = {"target": {"services": list(names)}}
        data, self.id = self.bus.command("supervision.start", target)
        return lambda: self.bus.send(data)

    def many_down(self, names):
        if self.id:
            self.bus.wait(self.id)
            self.id = None
        self.bus.request("supervision.stop", {"target": {"services": list(names)}})

    def cli_start(self, name):
        self.id = None
        return [self.which("blackhole"), *self.directories, "start", name]

    def log_files(self, name):
        directory = self.path("state/instances", name + ".1")
        return [os.path.join(directory, file) for file in os.listdir(directory) if file.startswith("log")]


def end(pids):
    """Kills processes and waits until they are gone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
