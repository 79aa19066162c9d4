"""libzmq as a callee of direct calls: it tells the bridge an endpoint of its own, is a ROUTER with
PLAIN there, and checks the tickets of its callers itself.

    direct_callee.py ENDPOINT INSTANCE TOKEN DIRECTORY
"""

import hmac
import json
import os
import sys
import time

import blackhole
import msgpack
import zmq

bridge, instance, token, directory = sys.argv[1:5]
path = f"{directory}/{os.urandom(8).hex()}"


def tell(**what):
    print(json.dumps(what), flush=True)


class Registered(blackhole.Service):
    """The connection to the bridge: it keeps the key with which tickets are checked."""

    key = None

    def _register(self):
        methods = list(self.methods)
        self._put({"kind": "register", "version": 1, "methods": methods, "endpoint": f"ipc://{path}"})

    def _received(self, frame, payload):
        header = msgpack.unpackb(frame)
        if header["kind"] == "registered":
            self.key = bytes.fromhex(header["direct_key"])
        return super()._received(frame, payload)


def admits(caller, ticket):
    expiry, _, digits = ticket.partition(".")
    if service.key is None or not expiry.isdecimal() or str(int(expiry)) != expiry:
        return False
    expected = hmac.new(service.key, f"{caller}\0{expiry}".encode(), "sha256").hexdigest()
    return hmac.compare_digest(digits.encode(), expected.encode()) and int(expiry) >= time.time()


context = zmq.Context.instance()
zap = context.socket(zmq.REP)  # rfc.zeromq.org/spec/27; before anybody can connect
zap.bind("inproc://zeromq.zap.01")
router = context.socket(zmq.ROUTER)
router.plain_server = True
router.bind(f"ipc://{path}")
os.chmod(path, 0o666)  # the ticket admits, whichever user it is
service = Registered(bridge, instance, token)
for method in ("echo", "counted", "hold"):
    service.methods[method] = lambda payload, call: b"by the bridge"
service.start(60)
tell(what="registered")

calls = {}  # what is worked on: (routing id, id of the request) -> (call, parts that are left)


def send(peer, payload=b"", **header):
    router.send_multipart([peer, msgpack.packb(header), payload])


def parts(count):
    for number in range(count):
        tell(what="made", number=number)
        yield bytes([number % 256]) * 1000


def go_on(peer, id):
    """Sends as many parts as the caller has room for, and after the last one the end."""
    call, left = calls[peer, id]
    while call.credit >= 1000 and len(call.parts) < 4096:
        part = next(left, None)
        if part is None:
            del calls[peer, id]
            return send(peer, kind="response", id=id, code="ok")
        call.credit -= len(part)
        call.parts.append(len(part))
        send(peer, part, kind="part", id=id)


def received(peer, caller, header, payload):
    kind, id = header["kind"], header.get("id")
    if kind == "heartbeat":
        send(peer, kind="heartbeat", registered=True)
    elif kind == "request" and header["method"] == "echo":
        send(peer, b"%s said %s" % (caller.encode(), payload), kind="response", id=id, code="ok")
    elif kind == "request" and header["method"] == "counted":
        calls[peer, id] = blackhole.Call(header), parts(int(payload))
        go_on(peer, id)
    elif kind == "request" and header["method"] == "hold":
        calls[peer, id] = blackhole.Call(header), iter(())
        tell(what="holding")
    elif kind == "request":
        send(peer, kind="response", id=id, code="unimplemented", message="no such method")
    elif kind == "credit" and (peer, id) in calls:
        calls[peer, id][0].change(credit=header["bytes"])
        go_on(peer, id)
    elif kind == "cancel" and calls.pop((peer, id), None):
        tell(what="cancelled")


poller = zmq.Poller()
poller.register(zap, zmq.POLLIN)
poller.register(router, zmq.POLLIN)
while True:
    ready = dict(poller.poll())
    if zap in ready:
        _, request, _, _, _, mechanism, *credentials = zap.recv_multipart()
        caller, ticket = (text.decode() for text in credentials)
        admitted = mechanism == b"PLAIN" and admits(caller, ticket)
        tell(what="admitted" if admitted else "turned away", caller=caller)
        code = b"200" if admitted else b"400"
        zap.send_multipart([b"1.0", request, code, b"", caller.encode(), b""])
    if router in ready:
        peer, header, *payload = router.recv_multipart(copy=False)
        # Who calls is what the ticket proved, not what the header says.
        caller = header.get("User-Id")
        payload = payload[0].bytes if payload else b""
        received(peer.bytes, caller, msgpack.unpackb(header.bytes), payload)
