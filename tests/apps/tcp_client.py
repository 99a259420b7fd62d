"""Clients for tcp.py. usage: tcp_client.py HOST PORT MODE; prints "ok" or the error; the exit status is 0 or 1."""
import base64
import os
import socket
import sys
import time

host, port, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.create_connection((host, port), timeout=15)
start = time.monotonic()
if mode == "greet":
    stream = s.makefile("rb")
    greeting = stream.readline()
    waited = time.monotonic() - start
    assert greeting == b"220 ready\r\n", greeting
    limit = float(sys.argv[4]) if len(sys.argv) > 4 else 3
    assert waited < limit, f"the greeting took {waited:.2f} s"
    for line in (b"one\r\n", b"two\r\n"):
        s.sendall(line)
        answer = stream.readline()
        assert answer == b"echo: " + line, answer
elif mode == "count":
    block = os.urandom(65536)
    for _ in range(800):
        s.sendall(block)
    s.shutdown(socket.SHUT_WR)
    answer = b""
    while data := s.recv(100):
        answer += data
    assert answer == str(800 * 65536).encode(), answer
elif mode == "trailers":
    s.sendall(b"POST / HTTP/1.1\r\nHost: " + host.encode() + b"\r\nTE: trailers\r\nTrailer: X-Check\r\n"
              b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Check: 7\r\n\r\n")
    answer = b""
    while b"\r\n0\r\n" not in answer or not answer.endswith(b"\r\n\r\n") or answer.count(b"0\r\nX-Sum") + answer.count(b"0\r\nx-sum") == 0:
        part = s.recv(65536)
        assert part, answer
        answer += part
    lower = answer.lower()
    assert b"x-check: 7" in lower, f"the server did not see the request's trailer: {answer}"
    assert lower.endswith(b"x-sum: 42\r\n\r\n"), f"the response's trailer is missing: {answer}"
elif mode == "websocket":
    key = base64.b64encode(os.urandom(16))
    s.sendall(b"GET /chat HTTP/1.1\r\nHost: " + host.encode() + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
              b"Sec-WebSocket-Key: " + key + b"\r\nSec-WebSocket-Version: 13\r\n\r\n")
    stream = s.makefile("rb")
    head = stream.readline()
    assert head.startswith(b"HTTP/1.1 101"), head
    while stream.readline() != b"\r\n":
        pass
    for text in (b"hello", b"x" * 100):
        mask = os.urandom(4)
        s.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))
        header = stream.read(2)
        answer = stream.read(header[1])
        assert answer == text, answer
    s.sendall(bytes([0x88, 0x80]) + b"\0\0\0\0")
    assert stream.read(2) == bytes([0x88, 0])
elif mode == "slow-http":
    # A client that connects early and sends its request later is still served as HTTP.
    time.sleep(1)
    s.sendall(b"GET /slow HTTP/1.1\r\nHost: order-service\r\nConnection: close\r\n\r\n")
    answer = b""
    while data := s.recv(65536):
        answer += data
    assert answer.startswith(b"HTTP/1.1 200") and b"x-request-id" in answer, answer
elif mode == "drip":
    # One byte at a time.
    for byte in b"GET /drip HTTP/1.1\r\nHost: order-service\r\nConnection: close\r\n\r\n":
        s.sendall(bytes([byte]))
        time.sleep(0.01)
    answer = s.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
print("ok")
