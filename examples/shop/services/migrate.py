"""One-shot: gives an empty Redis its schema and its products, then exits with 0."""

import os

from resp import Redis

SCHEMA = 1
PRODUCTS = {
    "tea": {"title": "Green tea, 100 g", "price_cents": 450, "stock": 40},
    "cup": {"title": "Cup, white", "price_cents": 790, "stock": 12},
    "pot": {"title": "Tea pot, cast iron", "price_cents": 3900, "stock": 3},
}


def main():
    redis = Redis(int(os.environ["REDIS_PORT"]))
    if redis("GET", "schema") is not None:
        print("Redis has its schema already")
        return
    for name, fields in PRODUCTS.items():
        words = [word for pair in fields.items() for word in pair]
        redis("HSET", f"product:{name}", *words)
        redis("SADD", "products", name)
        print(f"wrote product {name}")
    # Last, so that a run that is cut short is repeated from the start.
    redis("SET", "schema", SCHEMA)
    print(f"schema {SCHEMA} is in place")


if __name__ == "__main__":
    main()
