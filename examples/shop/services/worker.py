"""Ships orders: waits for ids on the list `orders:new`, takes the stock, marks the order.

`worker.py --check` is its liveness probe: it exits with 0 while a worker keeps
its sign of life in Redis fresh.
"""

import os
import signal
import sys

from resp import Redis

SIGN_OF_LIFE_S = 15
WAIT_S = 5


def ship(redis, order):
    key = f"order:{order}"
    product, quantity = redis("HMGET", key, "product", "quantity")
    left = redis("HINCRBY", f"product:{product}", "stock", -int(quantity))
    if left < 0:
        redis("HINCRBY", f"product:{product}", "stock", int(quantity))
        status = "sold out"
    else:
        status = "shipped"
    redis("HSET", key, "status", status, "worker", os.environ.get("BLACKHOLE_INSTANCE", "by hand"))
    print(f"order {order}: {quantity} {product}: {status}", flush=True)


def check(redis, alive):
    if redis("EXISTS", alive) != 1:
        sys.exit(f"no sign of life within {SIGN_OF_LIFE_S} s")


def main():
    redis = Redis(int(os.environ["REDIS_PORT"]))
    alive = "alive:" + os.environ.get("BLACKHOLE_INSTANCE", "by hand")
    if sys.argv[1:] == ["--check"]:
        return check(redis, alive)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("worker waits for orders", flush=True)
    while True:
        redis("SET", alive, 1, "EX", SIGN_OF_LIFE_S)
        # A little longer than Redis holds the command open.
        taken = redis("BLPOP", "orders:new", WAIT_S, timeout=WAIT_S + 5)
        if taken is not None:
            ship(redis, taken[1])


if __name__ == "__main__":
    main()
