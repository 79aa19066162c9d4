"""libzmq as a DEALER: a service that serves, and calls what it is told to on standard input.

    peer.py ENDPOINT INSTANCE TOKEN

A line in is {"op": "call" | "stream" | "resolve" | "end", …}, a line out is JSON.
"""

import json
import os
import sys
import threading

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

def end():
    service.close(30)
    tell(what="ended")
    os._exit(0)


for line in sys.stdin:
    order = json.loads(line)
    op = order.pop("op")
    payload = order.pop("payload", "").encode()
    try:
        if op == "call":
            answer = service.call(order["service"], order["method"], payload, order.get("budget", 30))
            tell(what="answer", text=answer.decode())
        elif op == "stream":
            parts = list(
                service.stream(order["service"], order["method"], payload, 30, window=order["window"])
            )
            tell(what="streamed", parts=len(parts), bytes=sum(map(len, parts)))
        elif op == "resolve":
            tell(what="resolved", endpoints=service.resolve(order["service"]))
        elif op == "release":
            release.set()
        elif op == "end":
            threading.Thread(target=end).start()
    except blackhole.Failed as failed:
        tell(what="failed", code=failed.code, message=failed.message)
