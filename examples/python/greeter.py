"""A service in Python: greets, counts, and asks a service in Rust.

    greet   bytes -> bytes      "hello <name>, from <caller>"
    count   n -> 1, 2 … n       a long answer, streamed to a caller that wants it
    relay   bytes -> bytes      asks the method `echo` of the service `echo`
"""

import os
import socket

from blackhole import Service

service = Service()


@service.method("greet")
def greet(payload, call):
    return b"hello %s, from %s" % (payload, call.caller.encode())


@service.method("count")
def count(payload, call):
    return (b"%d\n" % number for number in range(1, int(payload) + 1))


@service.method("relay")
def relay(payload, call):
    return service.call("echo", "echo", payload, budget=5, trace=call.trace)


def notify(text):
    """sd_notify(3): tells the readiness probe `notify: true`."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), path.replace("@", "\0", 1) if path[0] == "@" else path)


service.start()
notify("READY=1")
print("greeter serves", flush=True)
service.run()
print("greeter ends", flush=True)
