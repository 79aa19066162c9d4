"""libzmq as the server: a PUB and a SUB that look like a supervisor, as far as a client can tell.
Loses an event on purpose, and tells what it is asked.

    fake_component.py BUS_DIRECTORY
"""

import json
import sys
import time

import blackhole
import msgpack
import zmq

directory = sys.argv[1]
context = zmq.Context.instance()
evt = context.socket(zmq.PUB)
cmd = context.socket(zmq.SUB)
for sock in (evt, cmd):
    sock.set(zmq.HEARTBEAT_IVL, 100)
    sock.set(zmq.HEARTBEAT_TIMEOUT, 1000)
cmd.subscribe("")
evt.bind(f"ipc://{directory}/supervisor.evt")
cmd.bind(f"ipc://{directory}/supervisor.cmd")

source = {"component": "supervisor", "instance": "1", "incarnation": 5}
info = {"component": "supervisor", "pid": 1, "incarnation": 5, "version": "fake", "started_at": 1}
tails = {}
status = {
    "service": "web", "instance": "web.1", "desired": "up", "state": "RUNNING", "phase": "ready",
    "generation": 1, "pid": 7, "started_at": 1, "restarts": 0, "health": "healthy", "detail": None,
    "circuit": "closed", "last_exit": None, "last_error": None, "limits": None,
}  # fmt: skip


def publish(topic, kind, body, lose=False):
    seq = 0
    if topic.startswith("evt."):
        seq = tails[topic] = tails.get(topic, 0) + 1
    envelope = {"v": 1, "id": blackhole.fresh_id(), "at": 1, "source": source, "seq": seq}
    envelope |= {"kind": kind, "body": body, "later": "a field of another version"}
    if not lose:
        evt.send_multipart([topic.encode(), msgpack.packb(envelope)])


def changed(lose=False):
    status["restarts"] += 1
    body = {"status": status, "why": f"restart {status['restarts']}"}
    publish("evt.supervision.web.", "supervision.changed", body, lose)


print(json.dumps({"what": "bound"}), flush=True)
next_beat = time.monotonic()
while True:
    if time.monotonic() >= next_beat:
        next_beat = time.monotonic() + 1
        streams = {topic: seq for topic, seq in tails.items() if topic.startswith("evt.supervision.")}
        topics, hash = blackhole.tails_hash(streams)
        told = [{"prefix": "evt.supervision.", "topics": topics, "hash": hash}] if topics else []
        publish("evt.component.supervisor.", "component.heartbeat", {"pid": 1, "tails": told})
    if not cmd.poll(max(0, next_beat - time.monotonic()) * 1000):
        continue
    topic, frame = cmd.recv_multipart()
    envelope = msgpack.unpackb(frame)
    print(json.dumps({"what": "command", "topic": topic.decode(), "kind": envelope["kind"]}), flush=True)
    to, kind = f"rep.{envelope['reply_to']}.", envelope["kind"]

    def reply(**body):
        publish(to, "reply", {"to": envelope["id"], **body})

    if kind == "component.ping":
        reply(status="done", result=info)
    elif kind == "supervision.list":
        marks = [[topic, seq] for topic, seq in tails.items() if topic.startswith("evt.supervision.")]
        page = {"incarnation": 5, "watermarks": marks, "items": [status], "next": None}
        reply(status="done", result=page)
    elif kind == "supervision.reset":  # one event that arrives
        reply(status="accepted")
        changed()
        reply(status="done", result=[])
    elif kind == "supervision.start":  # one that is lost, and one that shows the gap
        changed(lose=True)
        changed()
        reply(status="done", result=[])
    elif kind == "supervision.stop":  # the last one of its topic is lost: only tails show it
        changed(lose=True)
        reply(status="done", result=[])
    else:
        reply(status="failed", code="unimplemented", message=f"not {kind}")
