"""A client that sends the given bytes, and prints the answer.

usage: wire_client.py HOST PORT PIECE...   Each piece has Python's escapes (\\r\\n, \\x00); `@N` sends N bytes, `~N` waits N ms.
       wire_client.py HOST PORT posts N    N POSTs on one connection whose bodies follow a moment after their heads; prints `lost M`

It prints the received bytes, until the server ends the connection (`<end>`), resets it (`<reset>`) or is silent for a second.
"""
import socket
import sys
import time

host, port, pieces = sys.argv[1], int(sys.argv[2]), sys.argv[3:]


def connect():
    return socket.create_connection((host, port), timeout=10)


def answer(stream):
    """Reads one answer: its status, and whether it has `Connection: close`."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            raise ConnectionError("no answer")
        head += line
    length = next((int(l.split(b":")[1]) for l in head.lower().split(b"\r\n") if l.startswith(b"content-length:")), 0)
    if len(stream.read(length)) < length:
        raise ConnectionError("half an answer")
    return int(head.split(b" ")[1]), b"connection: close" in head.lower()


def posts(count):
    lost, connection = 0, None
    for number in range(count):
        if connection is None:
            connection = connect()
            stream = connection.makefile("rb")
        path = (b"/early", b"/denied")[number % 2]
        try:
            connection.sendall(b"POST %s HTTP/1.1\r\nHost: wire\r\nContent-Length: 5\r\n\r\n" % path)
            time.sleep((0, 0.001, 0.02)[number % 3])
            connection.sendall(b"hello")
            closes = answer(stream)[1]
        except OSError:
            lost, closes = lost + 1, True
        if closes:
            connection.close()
            connection = None
    print("lost", lost)


if pieces[0] == "posts":
    posts(int(pieces[1]))
    sys.exit()
connection = connect()
received, end = b"", ""
try:
    for piece in pieces:
        if piece.startswith("~"):
            time.sleep(int(piece[1:]) / 1000)
        elif piece.startswith("@"):
            connection.sendall(b"x" * int(piece[1:]))
        else:
            connection.sendall(piece.encode("latin-1").decode("unicode_escape").encode("latin-1"))
except OSError:
    pass  # Earlier answers can still be read.
connection.settimeout(1)
try:
    while data := connection.recv(65536):
        received += data
    end = "<end>"
except TimeoutError:
    pass
except ConnectionError:
    end = "<reset>"
print(received.decode("latin-1") + end)
