"""libzmq as a DEALER: a service that serves, and calls what it is told to on standard input.

    peer.py ENDPOINT INSTANCE TOKEN

A line in is {"op": "call" | "stream" | "again" | "resolve" | "go on" | "end", …}, a line out is JSON. With "direct"
a call goes to an instance of the service itself.
"""

import json
import os
import sys
import threading

import zmq

import blackhole

blackhole.HEARTBEAT_MS = 100  # several intervals pass while a test runs
lock = threading.Lock()


def tell(**what):
    with lock:
        print(json.dumps(what), flush=True)


service = blackhole.Service(*sys.argv[1:4])
release = threading.Event()


@service.method("echo")
def echo(payload, call):
    return b"%s said %s" % (call.caller.encode(), payload)


@service.method("refuse")
def refuse(payload, call):
    raise blackhole.Failed("failed_precondition", "not today")


@service.method("hold")
def hold(payload, call):
    """Answers when it is told to, or tells that it was cancelled."""
    tell(what="holding")
    while not release.is_set():
        with call.changed:
            call.changed.wait(0.05)
        if call.cancelled:
            tell(what="cancelled")
            return b""
    return b"held"


@service.method("many")
def many(payload, call):
    """So many parts of 1000 bytes."""
    return (bytes([number % 256]) * 1000 for number in range(int(payload)))


@service.method("counted")
def counted(payload, call):
    """The same, and tells of each as it is made."""
    for number in range(int(payload)):
        tell(what="made", number=number)
        yield bytes([number % 256]) * 1000


class Direct(blackhole.Service):
    """A connection to an instance itself: its ticket is all, nothing is registered."""

    def _register(self):
        self.registered.set()

    def _put(self, header, payload=b""):
        header.pop("service", None)
        super()._put(header, payload)


direct = {}  # by endpoint


def way(order):
    """On which connection an order is carried out."""
    if not order.get("direct"):
        return service
    found = service.resolve(order["service"])
    if not found:
        raise blackhole.Failed("unavailable", "no instance takes direct calls")
    endpoint = found[0]["endpoint"]
    if endpoint not in direct:  # each answer has another ticket
        new = Direct(endpoint, service.instance, order.get("ticket", found[0]["ticket"]))
        new.start(30)
        direct[endpoint] = new
    return direct[endpoint]


lost = service._lost


def tell_lost():
    lost()
    tell(what="lost")


service._lost = tell_lost
register = service._received


def tell_registered(frame, payload):
    was = service.registered.is_set()
    beat = register(frame, payload)
    if service.registered.is_set() and not was:
        tell(what="registered")
    return beat


service._received = tell_registered
try:
    service.start(60)
except blackhole.Failed as failed:
    tell(what="refused", code=failed.code)
    sys.exit(3)

go_on = threading.Event()


def stream(order, payload):
    """Takes all parts; after so many as "pause" says it waits until it is told to go on."""
    taken = []
    try:
        for part in way(order).stream(order["service"], order["method"], payload, 30, window=order["window"]):
            taken.append(part)
            if len(taken) == order.get("pause"):
                tell(what="paused")
                go_on.wait()
        right = all(part == bytes([number % 256]) * 1000 for number, part in enumerate(taken))
        tell(what="streamed", parts=len(taken), bytes=sum(map(len, taken)), right=right)
    except blackhole.Failed as failed:
        tell(what="failed", code=failed.code, message=failed.message)


def end():
    service.close(30)
    # What was sent last is still on its way: the context's end waits for it.
    flushed = threading.Thread(target=zmq.Context.instance().term, daemon=True)
    flushed.start()
    flushed.join(5)
    tell(what="ended")
    os._exit(0)


for line in sys.stdin:
    order = json.loads(line)
    op = order.pop("op")
    payload = order.pop("payload", "").encode()
    try:
        if op == "call":
            answer = way(order).call(order["service"], order["method"], payload, order.get("budget", 30))
            tell(what="answer", text=answer.decode())
        elif op == "stream":
            threading.Thread(target=stream, args=[order, payload]).start()
        elif op == "go on":
            go_on.set()
        elif op == "again":  # on the direct connection that is there
            [there] = direct.values()
            tell(what="answer", text=there.call("", order["method"], payload).decode())
        elif op == "resolve":
            tell(what="resolved", endpoints=service.resolve(order["service"]))
        elif op == "release":
            release.set()
        elif op == "end":
            threading.Thread(target=end).start()
    except blackhole.Failed as failed:
        tell(what="failed", code=failed.code, message=failed.message)
