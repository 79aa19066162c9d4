"""A client of Redis in thirty lines: RESP2, one connection, standard library only."""

import socket


class Redis:
    def __init__(self, port, timeout=5.0):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._file = self._socket.makefile("rb")

    def __call__(self, *words, timeout=5.0):
        """Sends one command and gives back its answer: str, int, list or None."""
        self._socket.settimeout(timeout)
        request = [b"*%d\r\n" % len(words)]
        for word in words:
            word = str(word).encode()
            request.append(b"$%d\r\n%b\r\n" % (len(word), word))
        self._socket.sendall(b"".join(request))
        return self._answer()

    def _answer(self):
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise RuntimeError(rest)
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        length = int(rest)
        if length < 0:
            return None
        if kind == b"$":
            return self._file.read(length + 2)[:-2].decode()
        return [self._answer() for _ in range(length)]
