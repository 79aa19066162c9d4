"""The control channels of Blackhole and its peers, as far as they are measured.

Nothing but the standard library: ZMTP 3.0 (NULL) and MessagePack for Blackhole and
circus, AMP for pm2, XML-RPC for supervisord, dinit's packets.
"""

import json
import os
import queue
import socket
import struct
import threading
import time
import uuid
import xmlrpc.client

# --------------------------------------------------------------- MessagePack


def pack(value):
    """A value as MessagePack."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return bytes([value]) if 0 <= value < 128 else b"\xcf" + value.to_bytes(8, "big")
    if isinstance(value, bytes):
        return b"\xc6" + len(value).to_bytes(4, "big") + value
    if isinstance(value, str):
        data = value.encode()
        return b"\xdb" + len(data).to_bytes(4, "big") + data
    if isinstance(value, list):
        return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(pack, value))
    items = b"".join(pack(key) + pack(item) for key, item in value.items())
    return b"\xdf" + len(value).to_bytes(4, "big") + items


def unpack(data):
    """A value from MessagePack."""
    return _unpack(data, 0)[0]


_FIXED = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
          0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}


def _unpack(data, at):
    first = data[at]
    at += 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _FIXED:
        size = struct.calcsize(_FIXED[first])
        return struct.unpack_from(_FIXED[first], data, at)[0], at + size
    if first < 0x90 or first in (0xDE, 0xDF):
        count, at = (first & 15, at) if first < 0x90 else _length(data, at, first - 0xDD)
        result = {}
        for _ in range(count):
            key, at = _unpack(data, at)
            result[key], at = _unpack(data, at)
        return result, at
    if first < 0xA0 or first in (0xDC, 0xDD):
        count, at = (first & 15, at) if first < 0xA0 else _length(data, at, first - 0xDB)
        result = []
        for _ in range(count):
            item, at = _unpack(data, at)
            result.append(item)
        return result, at
    if first < 0xC0:
        count = first & 31
    elif first in (0xC4, 0xC5, 0xC6):
        count, at = _length(data, at, first - 0xC4)
        return bytes(data[at:at + count]), at + count
    elif first in (0xD9, 0xDA, 0xDB):
        count, at = _length(data, at, first - 0xD9)
    else:
        raise ValueError(f"MessagePack: 0x{first:02x}")
    return data[at:at + count].decode(), at + count


def _length(data, at, power):
    size = 1 << power
    return int.from_bytes(data[at:at + size], "big"), at + size


# ---------------------------------------------------------------------- ZMTP


def connect(path, patience=20):
    """A Unix stream socket, once somebody listens."""
    until = time.monotonic() + patience
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            sock.settimeout(60)
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def exactly(sock, count, who):
    """So many bytes of a stream."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError(f"{who} is gone")
        data += more
    return data


class Channel:
    """A channel of commands: `command` makes the bytes of one and its id, `wait` waits for its answer."""

    who = ""  # the other end, in errors

    def __init__(self, path):
        self.sock = connect(path)
        self.number = 0

    def command(self, *args, **properties):
        """The bytes of a command, and its id."""
        raise NotImplementedError

    def wait(self, id):
        """The answer to a command; others before it are passed over."""
        raise NotImplementedError

    def send(self, data):
        """Sends what `command` made."""
        self.sock.sendall(data)

    def request(self, *args, **properties):
        """A command and its answer."""
        data, id = self.command(*args, **properties)
        self.send(data)
        return self.wait(id)

    def close(self):
        """Ends the connection."""
        self.sock.close()

    def _exactly(self, count):
        return exactly(self.sock, count, self.who)


class Zmtp:
    """One connection over ipc (rfc.zeromq.org/spec/23). Messages that arrive are in `messages`."""

    def __init__(self, path, kind, subscriptions=()):
        self.sock = connect(path)
        self.messages = queue.SimpleQueue()
        self.sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        exactly(self.sock, 64, path)
        kind = kind.encode()
        ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        if kind == b"DEALER":
            ready += b"\x08Identity" + (8).to_bytes(4, "big") + os.urandom(4).hex().encode()
        self.sock.sendall(b"\x04" + bytes([len(ready)]) + ready)
        self._frame()  # the other side's READY
        for prefix in subscriptions:
            self.sock.sendall(self.encode([b"\x01" + prefix.encode()]))
        self.sock.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()

    @staticmethod
    def encode(frames):
        """The bytes of a message."""
        data = b""
        for index, frame in enumerate(frames):
            more = index + 1 < len(frames)
            if len(frame) > 255:
                data += bytes([2 | more]) + len(frame).to_bytes(8, "big") + frame
            else:
                data += bytes([more, len(frame)]) + frame
        return data

    def send(self, data):
        """Sends what `encode` made."""
        self.sock.sendall(data)

    def close(self):
        """Ends the connection."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def _frame(self):
        flags = exactly(self.sock, 1, "a peer")[0]
        size = int.from_bytes(exactly(self.sock, 8 if flags & 2 else 1, "a peer"), "big")
        return flags, exactly(self.sock, size, "a peer")

    def _read(self):
        frames = []
        try:
            while True:
                flags, frame = self._frame()
                if flags & 4:
                    if frame.startswith(b"\x04PING"):
                        pong = b"\x04PONG" + frame[7:]
                        self.sock.sendall(bytes([4, len(pong)]) + pong)
                    continue
                frames.append(frame)
                if not flags & 1:
                    self.messages.put(frames)
                    frames = []
        except (OSError, EOFError):
            self.messages.put(None)


class Bus(Channel):
    """Commands to one of Blackhole's components, see docs/protocol.md."""

    def __init__(self, run, component):
        self.component = component
        self.me = f"compare-{os.urandom(4).hex()}"
        self.replies = Zmtp(f"{run}/bus/{component}.evt", "SUB", [f"rep.{self.me}."])
        self.commands = Zmtp(f"{run}/bus/{component}.cmd", "PUB")
        ping, _ = self.command("component.ping", {})
        for _ in range(2000):
            self.commands.send(ping)
            if self._reply(0.005):
                return
        raise TimeoutError(f"{component} does not answer")

    def command(self, kind, body, budget=60):
        id = uuid.uuid4().bytes
        envelope = {
            "v": 1, "id": id, "at": time.time_ns(), "seq": 0,
            "source": {"component": self.me, "instance": str(os.getpid()), "incarnation": 0},
            "reply_to": self.me, "budget_ms": budget * 1000, "kind": kind, "body": body,
        }
        return Zmtp.encode([f"cmd.{self.component}.".encode(), pack(envelope)]), id

    def wait(self, id, patience=60):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            body = self._reply(1)
            if body and body["to"] == id:
                state = body["status"]
                if state == "accepted":
                    continue
                if state == "failed":
                    raise RuntimeError(str(body))
                return body
        raise TimeoutError("no answer")

    def send(self, data):
        self.commands.send(data)

    def close(self):
        self.replies.close()
        self.commands.close()

    def _reply(self, timeout):
        try:
            frames = self.replies.messages.get(timeout=timeout)
        except queue.Empty:
            return None
        if frames is None:
            raise EOFError(f"{self.component} is gone")
        return unpack(frames[1])["body"]


class Circus(Channel):
    """circusd's endpoint: JSON over a DEALER."""

    def __init__(self, path):
        self.dealer = Zmtp(path, "DEALER")

    def command(self, verb, **properties):
        id = uuid.uuid4().hex
        text = json.dumps({"command": verb, "properties": properties, "id": id})
        return Zmtp.encode([text.encode()]), id

    def wait(self, id, patience=60):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            frames = self.dealer.messages.get(timeout=patience)
            if frames is None:
                raise EOFError("circusd is gone")
            answer = json.loads(frames[-1])
            if answer.get("id") == id:
                if answer.get("status") == "error":
                    raise RuntimeError(str(answer))
                return answer
        raise TimeoutError("no answer")

    def send(self, data):
        self.dealer.send(data)

    def close(self):
        self.dealer.close()


# ----------------------------------------------------------------------- AMP


class Pm2(Channel):
    """pm2's rpc.sock: calls of its God daemon in AMP."""

    who = "pm2"

    def command(self, method, *args):
        self.number += 1
        id = f"compare:{self.number}"
        call = json.dumps({"type": "call", "method": method, "args": list(args)})
        data = b"\x12"
        for part in (b"j:" + call.encode(), b"s:" + id.encode()):
            data += len(part).to_bytes(4, "big") + part
        return data, id

    def wait(self, id):
        while True:
            count = self._exactly(1)[0] & 15
            parts = [self._exactly(int.from_bytes(self._exactly(4), "big")) for _ in range(count)]
            if parts[-1] == b"s:" + id.encode():
                answer = json.loads(parts[0][2:])
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["args"]


# ------------------------------------------------------------------- XML-RPC


class Supervisord:
    """supervisord's Unix socket; a connection for each call, as it ends them itself."""

    def __init__(self, path):
        self.path = path
        connect(path).close()

    def command(self, method, *args):
        """A connection and the bytes of a call."""
        body = xmlrpc.client.dumps(args, method).encode()
        head = (f"POST /RPC2 HTTP/1.0\r\nHost: localhost\r\nContent-Type: text/xml\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        return connect(self.path), head.encode() + body

    def wait(self, sock):
        """The answer on a connection."""
        data = b""
        while more := sock.recv(65536):
            data += more
        sock.close()
        return xmlrpc.client.loads(data.split(b"\r\n\r\n", 1)[1])[0][0]

    def request(self, method, *args):
        """A call and its answer."""
        sock, data = self.command(method, *args)
        sock.sendall(data)
        return self.wait(sock)


# --------------------------------------------------------------------- dinit


class Dinit:
    """dinit's control socket, see its `control-cmds.h`. A thread takes in what comes: once dinit could not
    write at once to who does not read, it reads no more from it."""

    LOAD, START, STOP = 2, 3, 4

    def __init__(self, path):
        self.sock = connect(path)
        self.buffer = b""
        self.ended = False
        self.came = threading.Condition()
        threading.Thread(target=self._take_in, daemon=True).start()
        self.handles = {}
        self.stopped = set()

    def handle(self, name):
        """The handle of a service; loads it."""
        if name not in self.handles:
            self.sock.sendall(bytes([self.LOAD]) + struct.pack("=H", len(name)) + name.encode())
            if self._reply() != 59:
                raise RuntimeError(f"dinit cannot load {name}")
            self.handles[name] = self._exactly(6)[1:5]
        return self.handles[name]

    def command(self, what, name):
        """The bytes of a start or a stop."""
        return bytes([what, 0]) + self.handle(name)

    def stop(self, names):
        """Stops services, one after the other, and waits for the events that say so; answers before them are
        passed over."""
        for name in names:
            wanted = self.handle(name)
            self.stopped.discard(wanted)
            self.sock.sendall(self.command(self.STOP, name))
            while wanted not in self.stopped:
                if (kind := self._exactly(1)[0]) >= 100:
                    self._event(kind)

    def close(self):
        """Ends the connection."""
        self.sock.close()

    def _reply(self):
        while (kind := self._exactly(1)[0]) >= 100:
            self._event(kind)
        return kind

    def _event(self, kind):
        body = self._exactly(self._exactly(1)[0] - 2)
        if kind == 100:
            (self.stopped.add if body[4] == 1 else self.stopped.discard)(body[:4])

    def _take_in(self):
        more = True
        while more:
            try:
                more = self.sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                more = b""
            with self.came:
                self.buffer += more
                self.ended = not more
                self.came.notify_all()

    def _exactly(self, count):
        with self.came:
            if not self.came.wait_for(lambda: len(self.buffer) >= count or self.ended, self.sock.gettimeout()):
                raise TimeoutError("dinit does not answer")
            if len(self.buffer) < count:
                raise EOFError("dinit is gone")
            data, self.buffer = self.buffer[:count], self.buffer[count:]
            return data


# ---------------------------------------------------------------------- shep


class Shep(Channel):
    """shep's socket: JSON behind its length."""

    PROTOCOL = 15
    who = "shep"

    def __init__(self, path):
        super().__init__(path)
        self.sock.sendall(self._encode({"client_version": "0.23.0", "protocol": self.PROTOCOL}))
        self._frame()

    @staticmethod
    def _encode(value):
        data = json.dumps(value).encode()
        return len(data).to_bytes(4, "big") + data

    def command(self, kind, selector):
        self.number += 1
        body = {"kind": kind, "selector": selector}
        return self._encode({"id": self.number, "deadline_ms": 60000, "body": body}), self.number

    def wait(self, id):
        while True:
            frame = self._frame()
            if frame.get("id") == id:
                if "Err" in frame["result"]:
                    raise RuntimeError(str(frame["result"]))
                return frame["result"]["Ok"]

    def _frame(self):
        return json.loads(self._exactly(int.from_bytes(self._exactly(4), "big")))
