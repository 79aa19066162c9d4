"""Blackhole for Python, in one file: the bus and the RPC plane.

Needs pyzmq and msgpack. The protocol is docs/protocol.md; this file follows it
in its order, and nothing of it is special to Python.

    bus = Bus("supervisor")                                   # operators: the bus
    bus.request("supervision.start", {"target": {"services": ["web"]}}, budget=30)
    for what, data in bus.follow("evt.supervision.", "supervision.list"):
        ...

    service = Service()                                       # services: RPC
    @service.method("greet")
    def greet(payload, call):
        return b"hello " + payload
    service.run()                                             # until SIGTERM
"""

import collections
import itertools
import os
import queue
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgpack
import zmq
import zmq.utils.monitor

MAX_MESSAGE = 16 * 1024 * 1024
HEARTBEAT_MS = 5000  # ZMTP's, three of which may go unanswered


class Failed(Exception):
    """A command or a call that ended with a status other than ok."""

    def __init__(self, code, message=""):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def open_socket(kind, username=None, password=None):
    """A socket with what both planes have in common. Not connected yet."""
    sock = zmq.Context.instance().socket(kind)
    sock.set(zmq.LINGER, 500)
    sock.set(zmq.MAXMSGSIZE, MAX_MESSAGE)
    sock.set(zmq.RECONNECT_IVL, 10)
    sock.set(zmq.RECONNECT_IVL_MAX, 200)
    sock.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    sock.set(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    if username is not None:
        sock.set(zmq.PLAIN_USERNAME, username.encode())
        sock.set(zmq.PLAIN_PASSWORD, password.encode())
    return sock


# --------------------------------------------------------------------- the bus


def default_run_dir():
    if os.environ.get("BLACKHOLE_RUN_DIR"):
        return os.environ["BLACKHOLE_RUN_DIR"]
    return "/run/blackhole" if os.geteuid() == 0 else os.environ["XDG_RUNTIME_DIR"] + "/blackhole"


def fresh_id():
    """A UUIDv7 (RFC 9562) as 16 bytes."""
    random = bytearray(os.urandom(10))
    random[0] = 0x70 | random[0] & 0x0F
    random[2] = 0x80 | random[2] & 0x3F
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + bytes(random)


def tails_hash(tails):
    """What a heartbeat tells of a stream: topics and a sum over their last seq."""
    total = 0
    for topic, seq in tails.items():
        value = 0xCBF29CE484222325  # FNV-1a, 64 bits
        for byte in topic.encode() + seq.to_bytes(8, "little"):
            value = (value ^ byte) * 0x100000001B3 % 2**64
        total = (total + value) % 2**64
    return len(tails), total


class Bus:
    """A connection to one component. Not for several threads at once."""

    def __init__(self, component, run_dir=None, evt=None, cmd=None, username=None, password=None):
        """Over ipc in `run_dir`; over tcp with `evt`, `cmd`, "operator" and the text of bus.key."""
        base = f"ipc://{run_dir or default_run_dir()}/bus/{component}"
        self.component = component
        self.me = f"python-{os.urandom(4).hex()}"
        self.sub = open_socket(zmq.SUB, username, password)
        self.pub = open_socket(zmq.PUB, username, password)
        self.sub.connect(evt or base + ".evt")
        self.pub.connect(cmd or base + ".cmd")
        self.presence = f"evt.component.{component}."
        self.sub.subscribe(self.presence)
        self.sub.subscribe(f"rep.{self.me}.")
        self.events = collections.deque()  # as received; follow() takes them
        self.replies = {}  # by id, of the requests under way

    def close(self):
        self.sub.close()
        self.pub.close()

    def subscribe(self, prefix):
        self.sub.subscribe(prefix)

    def receive(self, timeout):
        """Takes one message in. False when none came within `timeout` seconds."""
        if not self.sub.poll(max(0, timeout) * 1000):
            return False
        topic, frame = self.sub.recv_multipart()[:2]
        envelope = msgpack.unpackb(frame, strict_map_key=False)
        if envelope["v"] != 1:
            raise Failed("unimplemented", f"envelope version {envelope['v']}")
        topic = topic.decode()
        if topic.startswith("rep."):
            if envelope["kind"] == "reply" and envelope["body"]["to"] in self.replies:
                self.replies[envelope["body"]["to"]].append(envelope["body"])
        else:
            self.events.append((topic, envelope))
        return True

    def event(self, timeout=None):
        """The next event as (topic, envelope); None when none came within `timeout` seconds."""
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        while not self.events:
            if not self.receive(min(deadline - time.monotonic(), 1)) and time.monotonic() >= deadline:
                return None
        return self.events.popleft()

    def publish(self, kind, body, budget, id):
        """Sends a command, once: it may be lost, and is not answered here."""
        envelope = {
            "v": 1,
            "id": id,
            "at": time.time_ns(),
            "source": {"component": self.me, "instance": str(os.getpid()), "incarnation": 0},
            "seq": 0,
            "reply_to": self.me,
            "budget_ms": int(budget * 1000),
            "kind": kind,
            "body": body,
        }
        self.pub.send_multipart([f"cmd.{self.component}.".encode(), msgpack.packb(envelope)])

    def request(self, kind, body, budget=10.0):
        """Sends a command and gives back its result. It is repeated with the same id until it
        is answered, so that it takes effect once however many messages are lost."""
        id, deadline, pause = fresh_id(), time.monotonic() + budget, 0.05
        self.replies[id] = []
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.publish(kind, body, left, id)
                until = min(time.monotonic() + pause, deadline)
                pause = min(pause * 2, 1)
                while time.monotonic() < until:
                    self.receive(until - time.monotonic())
                    for reply in self.replies[id]:
                        if reply["status"] == "done":
                            return reply["result"]
                        if reply["status"] == "failed":
                            raise Failed(reply["code"], reply["message"])
                    if self.replies[id]:  # accepted: being worked on, ask again only after a while
                        self.replies[id].clear()
                        pause, until = 1, min(time.monotonic() + 1, deadline)
        finally:
            del self.replies[id]
        raise Failed("deadline_exceeded", f"{self.component} did not answer within {budget} s")

    def ready(self, budget=10.0):
        """Proves the path by an echo; gives back who the component is."""
        return self.request("component.ping", {}, budget)

    def snapshot(self, list_kind):
        """The whole state of a stream: (incarnation, watermarks of its topics, items)."""
        while True:
            page = first = self.request(list_kind, {})
            items = page["items"]
            while page["next"] is not None and page["incarnation"] == first["incarnation"]:
                page = self.request(list_kind, {"after": page["next"]})
                items += page["items"]
            if page["incarnation"] == first["incarnation"]:
                return first["incarnation"], dict(first["watermarks"]), items

    def follow(self, prefix, list_kind):
        """Yields ("snapshot", items) and then ("event", envelope) for each change after it, and
        another snapshot whenever something may have been missed; ("down", None) when the
        component is away. Whoever keeps a table needs nothing else."""
        self.subscribe(prefix)
        while True:
            try:
                self.ready(budget=1)
                incarnation, tails, items = self.snapshot(list_kind)
            except Failed:
                continue
            yield "snapshot", items
            while True:
                got = self.event(timeout=3.5)
                if got is None:  # three heartbeats missed
                    yield "down", None
                    break
                topic, envelope = got
                if envelope["source"]["incarnation"] < incarnation:
                    continue  # of its earlier life
                if envelope["source"]["incarnation"] > incarnation:
                    break  # another life of the component
                if topic == self.presence and envelope["kind"] == "component.bye":
                    yield "down", None
                    break
                if topic == self.presence and envelope["kind"] == "component.heartbeat":
                    told = {tail["prefix"]: tail for tail in envelope["body"]["tails"]}
                    told = told.get(prefix, {"topics": 0, "hash": 0})
                    if (told["topics"], told["hash"]) != tails_hash(tails):
                        break  # something was lost that no later message shows
                if not topic.startswith(prefix) or envelope["seq"] <= tails.get(topic, 0):
                    continue  # not of this stream, or in the snapshot already
                if envelope["seq"] > tails.get(topic, 0) + 1:
                    break  # a gap
                tails[topic] = envelope["seq"]
                yield "event", envelope


# ------------------------------------------------------------------------- RPC


class Call:
    """What a method is told besides the payload."""

    def __init__(self, header):
        self.caller = header.get("caller")  # the instance that calls, proven by its token
        self.deadline = time.monotonic() + header.get("budget_ms", 30_000) / 1000
        self.trace = header.get("trace")  # W3C traceparent, to be handed on
        self.window = header.get("window")  # the caller takes a streamed answer
        self.cancelled = False
        self.credit = self.window or 0  # bytes that may still be sent
        self.parts = collections.deque()  # sizes of those that are out, at most 4096
        self.taken = 0  # acknowledged bytes of the oldest one
        self.changed = threading.Condition()

    def change(self, credit=0, cancelled=False):
        with self.changed:
            self.credit += credit
            self.taken += credit
            while self.parts and self.parts[0] <= self.taken:
                self.taken -= self.parts.popleft()
            self.cancelled |= cancelled
            self.changed.notify_all()


class Service:
    """A service's connection to the bridge: serves methods and calls those of others. One
    thread owns the socket; methods run in `workers` threads."""

    # libzmq up to 4.3.5 misspells PLAIN's ERROR command, so that the right one is a surprise to it.
    REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

    def __init__(self, endpoint=None, instance=None, token=None, workers=8):
        """As the service that this process was started as, unless told otherwise."""
        self.instance = instance or os.environ["BLACKHOLE_INSTANCE"]
        self.sock = open_socket(zmq.DEALER, self.instance, token or os.environ["BLACKHOLE_TOKEN"])
        self.sock.set(zmq.SNDTIMEO, 1000)
        self.monitor = self.sock.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | self.REFUSED
        )
        self.sock.connect(endpoint or os.environ["BLACKHOLE_RPC"])  # now that nothing is missed
        self.methods = {}
        self.workers = workers
        self.pool = ThreadPoolExecutor(workers)
        self.ids = itertools.count(1)
        self.pending = {}  # answers of our calls: id -> queue of (header, payload)
        self.working = {}  # calls we work on: id -> Call
        self.idle = threading.Condition()
        self.outbox = queue.SimpleQueue()
        self.wake, self.woken = socket.socketpair()
        self.wake.setblocking(False)
        self.registered = threading.Event()
        self.refused = False
        self.closing = False
        self.thread = threading.Thread(target=self._io, daemon=True)

    def method(self, name):
        """Decorator: serve `function(payload, call)` as this method. It gives back bytes, or an
        iterator of bytes, which is streamed to a caller that wants it; it may raise
        Failed(code, message)."""

        def add(function):
            self.methods[name] = function
            return function

        return add

    def start(self, within=30.0):
        """Connects and waits until the bridge has registered us. Methods come before this."""
        self.thread.start()
        self._wait(within)

    def _wait(self, within):
        if not self.registered.wait(within):
            raise Failed("unavailable", "the bridge is not there")
        if self.refused:
            raise Failed("unauthenticated", "the bridge refused this service's token")

    def run(self, drain=5.0):
        """Serves until SIGTERM or SIGINT, then finishes the calls under way."""
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        if not self.thread.is_alive():
            self.start()
        stop.wait()
        self.close(drain)

    def close(self, drain=5.0):
        """Says goaway, finishes the calls under way, at most for `drain` seconds, and ends."""
        deadline = time.monotonic() + drain
        try:
            self._send({"kind": "goaway", "reason": "the service ends"})
            self.resolve(self.instance.split(".")[0], drain)  # its answer: no call comes after this
        except Failed:
            pass
        with self.idle:
            self.idle.wait_for(lambda: not self.working, max(0, deadline - time.monotonic()))
        self.closing = True
        self._send(None)
        self.thread.join()
        self.pool.shutdown(wait=False)

    def call(self, service, method, payload=b"", budget=10.0, trace=None):
        """Calls a method of a service and gives back the answer's payload. A failed call may
        or may not have had its effect: repeat it only where that does no harm."""
        header = {"kind": "request", "service": service, "method": method}
        header |= {"trace": trace} if trace else {}
        return b"".join(part for _, part in self._exchange(header, payload, budget))

    def stream(self, service, method, payload=b"", budget=60.0, trace=None, window=256 * 1024):
        """The same for a long answer: yields its parts as they come. The callee sends no more
        than `window` bytes ahead of what has been taken."""
        header = {"kind": "request", "service": service, "method": method, "window": window}
        header |= {"trace": trace} if trace else {}
        for header, part in self._exchange(header, payload, budget):
            if part:
                yield part
            if header["kind"] == "part":
                self._send({"kind": "credit", "id": header["id"], "bytes": len(part)})

    def resolve(self, service, budget=10.0):
        """The endpoints of their own that the instances of a service offer for direct calls."""
        [(header, _)] = self._exchange({"kind": "resolve", "service": service}, b"", budget)
        return header.get("endpoints", [])

    def _exchange(self, header, payload, budget):
        """Sends a request; yields what comes back for it up to the response."""
        deadline, id, answers = time.monotonic() + budget, next(self.ids), queue.SimpleQueue()
        self._wait(budget)
        left = max(1, int((deadline - time.monotonic()) * 1000))
        header |= {"id": id, "budget_ms": left}
        self.pending[id] = answers
        try:
            self._send(header, payload)
            while True:
                try:
                    answer, payload = answers.get(timeout=max(0, deadline - time.monotonic()))
                except queue.Empty:
                    raise Failed("deadline_exceeded", f"no answer within {budget} s") from None
                if answer["kind"] == "response":
                    del self.pending[id]
                    if answer["code"] != "ok":
                        raise Failed(answer["code"], answer.get("message", ""))
                    yield answer, payload
                    return
                yield answer, payload
        finally:
            if self.pending.pop(id, None):  # given up
                self._send({"kind": "cancel", "id": id})

    # From here on: the thread that owns the socket.

    def _send(self, header, payload=b""):
        """From any thread."""
        self.outbox.put((header, payload))
        try:
            self.wake.send(b"x")
        except BlockingIOError:
            pass  # it is awake

    def _io(self):
        poller = zmq.Poller()
        for what in (self.sock, self.monitor, self.woken):
            poller.register(what, zmq.POLLIN)
        connected, beat, next_beat = False, 5.0, time.monotonic() + 5.0
        while True:
            ready = dict(poller.poll(max(0, next_beat - time.monotonic()) * 1000))
            if self.monitor in ready:
                event = zmq.utils.monitor.recv_monitor_message(self.monitor)["event"]
                connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                if connected:
                    self._register()
                else:
                    while self.sock.poll(0):  # what came before the end: answers
                        beat = self._take() or beat
                    self._lost()
                if event & self.REFUSED:
                    self.refused = True
                    self.registered.set()
            elif self.sock in ready:
                beat = self._take() or beat
            if self.woken.fileno() in ready:
                self.woken.recv(4096)
            while not self.outbox.empty():
                header, payload = self.outbox.get()
                if header and connected:
                    self._put(header, payload)
                elif header and header["kind"] == "request":
                    self._answer(header["id"], "unavailable", "the bridge is away")
            if self.closing and self.outbox.empty():
                self.sock.disable_monitor()
                self.sock.close()
                return
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + beat
                if connected:
                    self._put({"kind": "heartbeat"})

    def _take(self):
        frames = self.sock.recv_multipart()
        return self._received(frames[0], b"".join(frames[1:2]))

    def _put(self, header, payload=b""):
        try:
            self.sock.send_multipart([msgpack.packb(header), payload])
        except zmq.Again:  # the queue to a bridge that does not read is full
            pass

    def _register(self):
        methods = list(self.methods)
        self._put({"kind": "register", "version": 1, "methods": methods, "capacity": self.workers})

    def _lost(self):
        if not self.refused:
            self.registered.clear()
        for call in list(self.working.values()):
            call.change(cancelled=True)  # nobody waits for these answers any more
        for id in list(self.pending):
            self._answer(id, "unavailable", "the connection to the bridge was lost")

    def _answer(self, id, code, message):
        if answers := self.pending.get(id):
            answers.put(({"kind": "response", "id": id, "code": code, "message": message}, b""))

    def _received(self, frame, payload):
        header = msgpack.unpackb(frame)
        kind, id = header["kind"], header.get("id")
        if kind == "registered":
            self.registered.set()
            return header["heartbeat_ms"] / 1000
        if kind == "heartbeat" and header.get("registered") is False:
            self._register()
        elif kind == "request":
            self.working[id] = call = Call(header)
            self.pool.submit(self._work, id, header["method"], payload, call)
        elif kind in ("response", "part"):
            if answers := self.pending.get(id):
                answers.put((header, payload))
        elif kind in ("credit", "cancel"):
            if call := self.working.get(id):
                call.change(header.get("bytes", 0), cancelled=kind == "cancel")
        # goaway: no more calls will come, those we work on are still answered.
        # Any other kind is of a later version and skipped.

    # In the threads of the methods.

    def _work(self, id, method, payload, call):
        header = {"kind": "response", "id": id}
        try:
            if method not in self.methods:
                raise Failed("unimplemented", f"{self.instance} does not serve {method!r}")
            answer = self.methods[method](payload, call)
            if not isinstance(answer, bytes):
                answer = self._stream_out(id, answer, call) if call.window else b"".join(answer)
            header |= {"code": "ok"}
        except Failed as failed:
            header, answer = header | {"code": failed.code, "message": failed.message}, b""
        except Exception as error:  # a fault of the method is the call's, not the service's
            header, answer = header | {"code": "internal", "message": repr(error)}, b""
        if not call.cancelled:
            self._send(header, answer)
        with self.idle:
            del self.working[id]
            self.idle.notify_all()

    def _stream_out(self, id, parts, call):
        largest = min(call.window, 1024 * 1024)
        for whole in parts:
            for at in range(0, len(whole), largest):
                part = whole[at : at + largest]
                with call.changed:
                    call.changed.wait_for(
                        lambda: call.cancelled or call.credit >= len(part) and len(call.parts) < 4096
                    )
                    call.credit -= len(part)
                    call.parts.append(len(part))
                if call.cancelled:
                    return b""
                self._send({"kind": "part", "id": id}, part)
        return b""
