"""A client with three streams that stay open: a gRPC stream, a WebSocket and a plain TCP connection, to servers that echo.

usage: long_lived.py HOST GRPC_PORT WEBSOCKET_PORT TCP_PORT; needs grpcio. It prints "open"; for each line of input it sends a message on
each stream, reads the echoes and prints "echoed" with the line; at the end of input it closes the streams and prints "closed".
"""
import os
import queue
import socket
import sys

import grpc

host, grpc_port, websocket_port, tcp_port = sys.argv[1:]
TIMEOUT = 10


class Grpc:
    def __init__(self):
        self.messages = queue.Queue()
        channel = grpc.insecure_channel(f"{host}:{grpc_port}")
        call = channel.stream_stream("/weft.Echo/Both")
        self.answers = call(iter(self.messages.get, None))

    def echo(self, message):
        self.messages.put(message)
        answer = next(self.answers)
        assert answer == b"stream:" + message, answer

    def close(self):
        self.messages.put(None)
        assert list(self.answers) == []
        assert self.answers.code() == grpc.StatusCode.OK, self.answers


class WebSocket:
    def __init__(self):
        self.socket = socket.create_connection((host, int(websocket_port)), TIMEOUT)
        self.stream = self.socket.makefile("rb")
        self.socket.sendall(b"GET / HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n" % host.encode())
        status = self.stream.readline()
        assert b" 101 " in status, status
        while self.stream.readline().strip():
            pass

    def send(self, opcode, message):
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(message))
        self.socket.sendall(bytes([0x80 | opcode, 0x80 | len(message)]) + mask + masked)

    def echo(self, message):
        self.send(1, message)
        frame = self.stream.read(2 + len(message))
        assert frame[2:] == message, frame

    def close(self):
        self.send(8, b"")
        assert self.stream.read() == bytes([0x88, 0])
        self.socket.close()


class Tcp:
    def __init__(self):
        self.socket = socket.create_connection((host, int(tcp_port)), TIMEOUT)

    def echo(self, message):
        self.socket.sendall(message)
        received = b""
        while len(received) < len(message):
            data = self.socket.recv(1000)
            assert data, "the connection has ended"
            received += data
        assert received == message, received

    def close(self):
        self.socket.shutdown(socket.SHUT_WR)
        assert self.socket.recv(1000) == b""


streams = [Grpc(), WebSocket(), Tcp()]
for stream in streams:
    stream.echo(b"first")
print("open", flush=True)
for line in sys.stdin:
    for stream in streams:
        try:
            stream.echo(line.strip().encode())
        except Exception as error:
            raise SystemExit(f"{type(stream).__name__}: {error!r}")
    print("echoed", line.strip(), flush=True)
for stream in streams:
    stream.close()
print("closed", flush=True)
