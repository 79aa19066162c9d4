"""libzmq as a PUB: sends one command many times with one id, as a client that never hears its
answer does, then asks for the answer and tells it.

    commander.py COMPONENT KIND BODY REPEATS [EVT CMD KEYFILE]
"""

import json
import sys

import blackhole

component, kind, body, repeats, *tcp = sys.argv[1:]
over = {}
if tcp:
    over = {"evt": tcp[0], "cmd": tcp[1], "username": "operator", "password": open(tcp[2]).read().strip()}
bus = blackhole.Bus(component, **over)
info = bus.ready(30)
id = blackhole.fresh_id()
for _ in range(int(repeats)):
    bus.publish(kind, json.loads(body), 60, id)
blackhole.fresh_id = lambda: id
try:
    answer = {"done": bus.request(kind, json.loads(body), 60)}
    again = {"done": bus.request(kind, json.loads(body), 60)}
except blackhole.Failed as failed:
    answer = again = {"failed": failed.code, "message": failed.message}
print(json.dumps({"answer": answer, "same": answer == again, "pid": info["pid"]}, default=repr))
