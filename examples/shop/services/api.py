"""The shop's reading side over HTTP, from Redis:

GET /products      all products, as the migration wrote them and the worker changed them
GET /orders/<id>   one order
GET /health        200 while Redis answers
"""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from resp import Redis

REDIS_PORT = int(os.environ["REDIS_PORT"])
API_PORT = int(os.environ["API_PORT"])


def fields(redis, key):
    flat = redis("HGETALL", key)
    return dict(zip(flat[::2], flat[1::2]))


def products(redis):
    names = sorted(redis("SMEMBERS", "products"))
    return {name: fields(redis, f"product:{name}") for name in names}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self):
        try:
            # One connection a request: a restart of Redis costs nothing but the requests meanwhile.
            redis = Redis(REDIS_PORT, timeout=2.0)
            parts = self.path.strip("/").split("/")
            if parts == ["health"]:
                self.answer(200, redis("PING"))
            elif parts == ["products"]:
                self.answer(200, products(redis))
            elif len(parts) == 2 and parts[0] == "orders" and parts[1].isdigit():
                order = fields(redis, f"order:{parts[1]}")
                self.answer(200 if order else 404, order or "no such order")
            else:
                self.answer(404, "not found")
        except (OSError, RuntimeError) as error:
            self.answer(503, f"Redis: {error}")

    def answer(self, status, value):
        body = (json.dumps(value) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        # The probes ask for /health every few seconds; only the rest is worth a line.
        if self.path != "/health":
            print(format % arguments, flush=True)


def main():
    server = ThreadingHTTPServer(("127.0.0.1", API_PORT), Handler)
    server.daemon_threads = True

    def stop(*_):
        # `shutdown` waits for the loop this handler interrupted, so it needs a thread.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    print(f"api listens on 127.0.0.1:{API_PORT}", flush=True)
    server.serve_forever()
    print("api ends", flush=True)


if __name__ == "__main__":
    sys.exit(main())
