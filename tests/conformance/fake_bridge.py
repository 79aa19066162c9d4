"""libzmq as the server: a ROUTER with PLAIN that looks like a bridge, as far as one service can
tell. Calls back whatever is called, with the payload reversed.

    fake_bridge.py ENDPOINT USERNAME PASSWORD
"""

import json
import sys

import msgpack
import zmq
from zmq.auth.thread import ThreadAuthenticator

endpoint, username, password = sys.argv[1:4]
context = zmq.Context.instance()
auth = ThreadAuthenticator(context)
auth.start()
auth.configure_plain(domain="*", passwords={username: password})
router = context.socket(zmq.ROUTER)
router.plain_server = True
router.set(zmq.HEARTBEAT_IVL, 100)
router.set(zmq.HEARTBEAT_TIMEOUT, 1000)
router.bind(endpoint)


def tell(**what):
    print(json.dumps(what), flush=True)


tell(what="bound")
waiting = {}  # calls of ours that the service works on
while True:
    peer, frame, payload = router.recv_multipart()
    header = msgpack.unpackb(frame)
    tell(what="header", header=header, payload=payload.decode())

    def send(payload=b"", **header):
        router.send_multipart([peer, msgpack.packb(header), payload])

    if header["kind"] == "register":
        send(kind="registered", version=1, incarnation=1, heartbeat_ms=200)
    elif header["kind"] == "heartbeat":
        send(kind="heartbeat", registered=True)
    elif header["kind"] == "request":
        # Answered with what the caller itself says to the reversed payload.
        waiting[77] = header["id"]
        send(
            payload[::-1],
            kind="request",
            id=77,
            method=header["method"],
            budget_ms=5000,
            caller="python.1",
            later="a field of another version",
        )
    elif header["kind"] == "response":
        send(payload, kind="response", id=waiting.pop(header["id"]), code=header["code"])
