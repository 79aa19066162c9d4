"""libzmq as a SUB: follows a stream and tells each thing that happens, one JSON a line.

    follower.py COMPONENT PREFIX LIST [EVT CMD KEYFILE]
"""

import json
import sys
import threading

import blackhole
import zmq
import zmq.utils.monitor

blackhole.HEARTBEAT_MS = 100  # several intervals pass while a test runs


def tell(**what):
    print(json.dumps(what, default=lambda value: value.hex()), flush=True)


def watch(monitor):
    while True:
        event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
        tell(what="connected" if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else "disconnected")


component, prefix, list_kind, *tcp = sys.argv[1:]
over = {}
if tcp:
    over = {"evt": tcp[0], "cmd": tcp[1], "username": "operator", "password": open(tcp[2]).read().strip()}
bus = blackhole.Bus(component, **over)
threading.Thread(
    target=watch,
    args=[bus.sub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)],
    daemon=True,
).start()
bus.subscribe(bus.presence)
beats = 0
original = bus.event


def event(timeout=None):
    """Tells the heartbeats, too."""
    global beats
    got = original(timeout)
    if got and got[1]["kind"] == "component.heartbeat":
        beats += 1
        tell(what="heartbeat", count=beats)
    return got


bus.event = event
for what, data in bus.follow(prefix, list_kind):
    if what == "snapshot":
        tell(what="snapshot", items=data)
    elif what == "down":
        tell(what="down")
    else:
        tell(what="event", kind=data["kind"], seq=data["seq"], body=data["body"])
