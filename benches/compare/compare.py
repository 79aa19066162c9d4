#!/usr/bin/env python3
"""Blackhole beside its peers: the same measurements of each, and one table.

    compare.py --peers DIR --blackhole target/release [--only shep,s6] [--rounds N] [--quick]

See README.md. Every time is that of the service's own first instruction, and stands beside
the floor of its own rounds: posix_spawn(3), which is vfork and exec, of the same program.
"""

import argparse
import json
import os
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import traceback

import peers as all_peers
from peers import PEERS, await_, end

HERE = os.path.dirname(os.path.abspath(__file__))
LINE = 100
WRITER = """
import os, sys, time
lines = int(sys.argv[1])
block = (b"x" * 99 + b"\\n") * 655
fifo = os.open(sys.argv[2], os.O_WRONLY)
os.write(fifo, time.monotonic_ns().to_bytes(8, sys.byteorder) + os.getpid().to_bytes(8, sys.byteorder))
left = lines
while left:
    count = min(left, 655)
    piece = memoryview(block)[: count * 100]
    while piece:
        piece = piece[os.write(1, piece):]
    left -= count
os.close(fifo)
time.sleep(3600)
"""


class Tiny:
    """The smallest service and the FIFO that it tells the time of its first instruction to."""

    def __init__(self, directory):
        self.program = os.path.join(directory, "tiny")
        source = os.path.join(HERE, "../tiny/tiny.rs")
        flags = ("--edition 2024 -C opt-level=2 -C panic=abort -C debuginfo=0 -C strip=symbols "
                 "-C relocation-model=static -C target-feature=+crt-static -C link-arg=-nostartfiles "
                 "-C link-arg=-nostdlib -C link-arg=-static")
        subprocess.run([os.environ.get("RUSTC", "rustc"), *flags.split(), "-o", self.program, source], check=True)
        self.path = os.path.join(directory, "fifo")
        os.mkfifo(self.path)
        os.chmod(self.path, 0o666)
        self.fifo = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self.command = [self.program, self.path]

    def first(self, patience=60.0):
        """Time (ns) and pid of the next first instruction."""
        if not select.select([self.fifo], [], [], patience)[0]:
            raise TimeoutError("no service came to its first instruction")
        return struct.unpack("=QQ", os.read(self.fifo, 16))

    def clear(self):
        """Forgets what was said."""
        while select.select([self.fifo], [], [], 0)[0]:
            os.read(self.fifo, 4096)

    def floor(self):
        """Nanoseconds from before posix_spawn to the first instruction."""
        self.clear()
        null = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        begin = time.monotonic_ns()
        pid = os.posix_spawn(self.program, self.command, {}, file_actions=null)
        at, _ = self.first()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return at - begin


class Tools:
    """What the peers share."""

    def __init__(self, arguments):
        self.peers = os.path.abspath(arguments.peers) if arguments.peers else None
        self.blackhole = os.path.abspath(arguments.blackhole)
        self.made = []

    def memory(self, peer):
        """A short directory in memory."""
        place = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.made.append(tempfile.mkdtemp(prefix="cmp-", dir=place))
        return os.path.join(self.made[-1], "r")


def processes(mark, places, program):
    """Pids of everything that a peer started, known by its environment, its directories or its program."""
    found, needle = [], f"COMPARE_MARK={mark}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                marked = needle in file.read().split(b"\0")
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                text = file.read()
            if marked or any(place.encode() in text for place in places) or executable(entry) == program:
                found.append(int(entry))
        except OSError:
            continue
    return found


def executable(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def pss(pids):
    """Proportional set size in KiB."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass
    return total


class Stage:
    """A peer under measurement, with everything of it gone at the end."""

    def __init__(self, name, tiny, tools, temp):
        self.name, self.tiny, self.tools, self.temp = name, tiny, tools, temp
        self.number = 0

    def __enter__(self):
        self.number += 1
        self.mark = os.urandom(8).hex()
        self.home = os.path.join(self.temp, f"{self.name[:2]}{os.urandom(2).hex()}")
        self.peer = PEERS[self.name](self.home, self.mark, self.tools)
        return self.peer

    def __exit__(self, *_):
        places = [self.home, *self.tools.made]
        for _ in range(200):
            left = self.all()
            if not left:
                break
            end(left)
            time.sleep(0.02)
        groups(self.peer)
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        self.tools.made.clear()
        self.tiny.clear()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def all(self):
        """Every process of the peer's."""
        return processes(self.mark, [self.home, *self.tools.made], self.tiny.program)

    def managers(self):
        """Those that are no services."""
        return [pid for pid in self.all() if executable(pid) not in (self.tiny.program, "")]

    def services(self):
        """Those that are."""
        return [pid for pid in self.all() if executable(pid) == self.tiny.program]


def groups(peer):
    """Removes the cgroups that a killed Blackhole leaves behind: those of its own state directory."""
    state = getattr(peer, "directories", [None])[-1]
    if not state:
        return
    import hashlib
    name = "blackhole-" + hashlib.sha256(state.encode()).hexdigest()[:8]
    for root, directories, _ in os.walk("/sys/fs/cgroup"):
        if name in directories:
            for folder, _, _ in os.walk(os.path.join(root, name), topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass
            directories.remove(name)


def start_one(peer, tiny):
    """Nanoseconds from the sent command to the first instruction."""
    start = peer.starter("one")
    tiny.clear()
    begin = time.monotonic_ns()
    start()
    return tiny.first()[0] - begin


def start_cli(peer, tiny):
    """The same from before the client's process, to its end if that is later."""
    argv = peer.cli_start("one")
    tiny.clear()
    with open(peer.path("client.out"), "ab") as out:
        begin = time.monotonic_ns()
        code = subprocess.Popen(argv, env=peer.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out).wait()
        ended = time.monotonic_ns()
    if code:
        raise RuntimeError(f"{argv} ended with {code}")
    return max(ended, tiny.first()[0]) - begin


def latencies(stage, tiny, options, result):
    """Starts by channel and by command line, and restarts after kill -9."""
    with stage as peer:
        peer.launch({"one": tiny.command}, auto=peer.channel is None)
        samples = {"floor": [], "start": [], "cli": [], "restart": []}
        rounds = min(options.rounds, 20) if peer.rest else options.rounds
        for turn in range(rounds + 3 if peer.channel else 0):
            keep = turn >= 3  # the first ones warm up
            time.sleep(peer.rest)
            samples["floor"] += [tiny.floor()] * keep
            samples["start"] += [start_one(peer, tiny)] * keep
            peer.down("one")
            if turn % options.cli_share == 0:
                time.sleep(peer.rest)
                samples["floor"] += [tiny.floor()] * keep
                samples["cli"] += [start_cli(peer, tiny)] * keep
                peer.down("one")
        if peer.channel:
            time.sleep(peer.rest)
            peer.starter("one")()
        _, pid = tiny.first()
        for turn in range(options.restarts + 1):
            samples["floor"] += [tiny.floor()] * bool(turn)
            time.sleep(peer.settle)
            begin = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            at, pid = tiny.first()
            samples["restart"] += [at - begin] * bool(turn)
        result.update({key: value for key, value in samples.items() if value})


def many(stage, tiny, options, result):
    """The start of many, from the request to the last first instruction."""
    names = [f"m{number}" for number in range(options.many)]
    with stage as peer:
        peer.launch({name: tiny.command for name in names})
        floors, took = [], []
        for _ in range(options.many_rounds):
            time.sleep(peer.rest)
            floors += [tiny.floor() for _ in range(20)]
            start = peer.many_starter(names)
            tiny.clear()
            begin = time.monotonic_ns()
            start()
            took.append(max(tiny.first()[0] for _ in names) - begin)
            if peer.channel is None:
                break
            peer.many_down(names)
        result.update(many=took, many_floor=floors, many_count=len(names))


def memory(stage, tiny, options, result):
    """What 100 services cost in their managers."""
    names = [f"m{number}" for number in range(100)]
    with stage as peer:
        peer.launch({name: tiny.command for name in names}, auto=True)
        for _ in names:
            tiny.first()
        time.sleep(2)
        managers = stage.managers()
        result.update(pss=pss(managers), managers=len(managers))


def logs(stage, tiny, options, result):
    """Lines a second from a service to the peer's file."""
    with stage as peer:
        if peer.log is None:
            return
        writer = peer.text("writer.py", WRITER)
        command = [sys.executable, writer, str(options.lines), tiny.path]
        rates = []
        for turn in range(options.log_rounds):
            if turn == 0:
                peer.launch({"one": command}, auto=True, capture=True)
            else:
                peer.down("one")
                for path in peer.log_files("one"):
                    os.truncate(path, 0)
                peer.starter("one")()
            begin, _ = tiny.first()
            at = until_written(peer, options.lines)
            rates.append(options.lines / (at - begin) * 1e9)
            found = sum(count_lines(path) for path in peer.log_files("one"))
            result["lost"] = result.get("lost", 0) + max(0, options.lines - found)
            if peer.channel is None:
                break
        result["lines"] = rates


def until_written(peer, lines):
    """When the last of so many lines is there, or nothing more has come for three seconds."""
    length, before, at = 0, -1, time.monotonic_ns()
    while time.monotonic_ns() - at < 3e9:
        files = peer.log_files("one")
        now = sum(map(size, files))
        if now != before:
            before, at = now, time.monotonic_ns()
        for path in files if not length and now >= 65536 else []:
            # All lines are as long as the first: the text is, and so is each peer's time.
            try:
                with open(path, "rb") as file:
                    line = file.readline()
                length = length or (line.endswith(b"\n") and len(line))
            except FileNotFoundError:  # rotated meanwhile
                continue
        if length and now >= lines * length:
            break
        time.sleep(0.002)
    return at


def size(path):
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def count_lines(path):
    with open(path, "rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def survival(stage, tiny, options, result):
    """What becomes of services whose manager, or whose own helper, is killed."""
    names = ["a", "b", "c"]
    with stage as peer:
        peer.launch({name: tiny.command for name in names}, auto=True)
        before = {tiny.first()[1] for _ in names}
        managers = [pid for pid in stage.managers() if os.path.basename(executable(pid)) != peer.helper]
        end(managers)
        await_(lambda: not set(managers) & set(stage.managers()), "the manager does not die", pause=0.01)
        time.sleep(0.5)
        peer.relaunch()
        result["survival"] = outcome(stage, before, options)
    if not PEERS[stage.name].helper:
        return
    with stage as peer:
        peer.launch({name: tiny.command for name in names}, auto=True)
        before = {tiny.first()[1] for _ in names}
        for pid in before:
            end([parent(pid)])
        result["helper"] = outcome(stage, before, options)


def parent(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def outcome(stage, before, options):
    """In one word."""
    time.sleep(options.patience)
    after = set(stage.services())
    if after == before:
        return "kept"
    if len(after) > len(before):
        return "duplicates"
    if len(after) == len(before) and not after & before:
        return "restarted"
    return f"{len(after & before)} of {len(before)} kept, {len(after - before)} new"


def measure(name, tiny, tools, options, temp):
    """Everything of one peer. What fails is said and does not end the rest."""
    result = {"failed": []}
    for part in (latencies, many, memory, logs, survival):
        if options.parts and part.__name__ not in options.parts:
            continue
        print(f"{name}: {part.__name__}", file=sys.stderr, flush=True)
        try:
            part(Stage(name, tiny, tools, temp), tiny, options, result)
        except Exception as error:
            if options.verbose:
                traceback.print_exc()
            result["failed"].append(f"{part.__name__}: {type(error).__name__} {error}"[:200])
            print(f"  {result['failed'][-1]}", file=sys.stderr, flush=True)
    return result


def table(results):
    """All of it, in Markdown."""
    order = [name for name in PEERS if name in results and "missing" not in results[name]]
    order = [name for name in order if name == "blackhole"] + [name for name in order if name != "blackhole"]
    rows = [
        ("start, fastest channel", lambda r: times(r, "start")),
        ("start, CLI process", lambda r: times(r, "cli")),
        ("kill -9 to successor", lambda r: times(r, "restart")),
        ("start of many", lambda r: burst(r)),
        ("managers' PSS, 100 services", lambda r: f"{r['pss'] / 1024:.1f} MiB" if "pss" in r else "–"),
        ("log lines a second", lambda r: (f"{statistics.median(r['lines']) / 1e6:.2f} M" + (
            f", {r['lost']} lost" if r.get("lost") else "")) if "lines" in r else "–"),
        ("manager killed and started again", lambda r: r.get("survival", "–")),
        ("its process of each service killed", lambda r: r.get("helper", "–")),
    ]
    lines = ["| | " + " | ".join(order) + " |", "|---|" + "---|" * len(order)]
    floors = [f"{statistics.median(results[name]['floor']) / 1e6:.2f}" if "floor" in results[name] else "–"
              for name in order]
    lines.append("| floor: vfork and exec, ms | " + " | ".join(floors) + " |")
    for title, cell in rows:
        lines.append(f"| {title} | " + " | ".join(cell(results[name]) for name in order) + " |")
    lines.append("")
    for name in order:
        kind = PEERS[name]
        lines.append(f"- {name}: {kind.channel or 'no channel for a start'}; {kind.cli or 'no command for one'}; "
                     f"logs {kind.log or 'not captured'}"
                     + "".join(f"; failed: {text}" for text in results[name]["failed"]))
    for name in PEERS:
        if "missing" in results.get(name, {}):
            lines.append(f"- {name}: left out, `{results[name]['missing']}` is not installed")
        elif name not in results:
            lines.append(f"- {name}: left out, not asked for")
    return "\n".join(lines)


def times(result, key):
    """Median, and how often the floor of the same rounds."""
    if key not in result:
        return "–"
    middle, floor = statistics.median(result[key]), statistics.median(result["floor"])
    return f"{middle / 1e6:.2f} ms ({middle / floor:.1f}×)"


def burst(result):
    """Median, and how often the floor's share of all cores."""
    if "many" not in result:
        return "–"
    count, middle = result["many_count"], statistics.median(result["many"])
    floor = statistics.median(result["many_floor"]) * count / len(os.sched_getaffinity(0))
    return f"{count}: {middle / 1e6:.0f} ms ({middle / floor:.1f}×)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="where install.sh put them; else PATH")
    parser.add_argument("--blackhole", default=os.path.join(HERE, "../../target/release"),
                        help="where Blackhole's programs are")
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--parts", help="latencies,many,memory,logs,survival")
    parser.add_argument("--dir", default=os.path.expanduser("~"), help="for temporary files; not /tmp, "
                        "shep as root writes no logs where everybody may write; default: the home directory")
    parser.add_argument("--rounds", type=int, default=100, help="starts of one service")
    parser.add_argument("--many", type=int, default=500, help="services started at once")
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    parser.add_argument("--save", help="a JSON file: results are added to those in it")
    parser.add_argument("--table", action="store_true", help="only prints what --save has")
    parser.add_argument("--verbose", action="store_true", help="where something failed")
    options = parser.parse_args()
    options.parts = options.parts.split(",") if options.parts else None
    options.restarts = max(3, options.rounds // 5)
    options.cli_share = 3
    options.many_rounds, options.log_rounds = 3, 3
    options.lines, options.patience = 3_000_000, 8
    if options.quick:
        options.rounds, options.restarts, options.many, options.many_rounds = 6, 2, 50, 1
        options.lines, options.log_rounds, options.patience = 300_000, 1, 7
    results = {}
    if options.save and os.path.exists(options.save):
        with open(options.save, encoding="utf-8") as file:
            results = json.load(file)
    if not options.table:
        run(options, results)
    print(table(results))


def run(options, results):
    """Measures who is asked for and there."""
    tools = Tools(options)
    wanted = options.only.split(",") if options.only else list(PEERS)
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory(prefix="cmp-", dir=options.dir) as temp:
        tiny = Tiny(temp)
        for name in wanted:
            path = os.environ["PATH"]
            path = f"{tools.peers}/bin:{path}" if tools.peers else path
            path = f"{tools.blackhole}:{path}" if name == "blackhole" else path
            missing = PEERS[name].missing(path)
            if missing:
                results[name] = {"missing": missing}
                continue
            old = results.get(name, {})
            new = measure(name, tiny, tools, options, temp)
            if options.parts:
                new["failed"] += [text for text in old.get("failed", []) if text.split(":")[0] not in options.parts]
                new = {**old, **new}
            new.pop("missing", None)
            results[name] = new
            if options.save:
                with open(options.save, "w", encoding="utf-8") as file:
                    json.dump(results, file)


if __name__ == "__main__":
    # An end by signal clears up as any other.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    main()
