"""A TCP server with a mode for each behaviour of protocols.

usage: tcp.py PORT MODE
greet      speaks first ("220 ready"), then answers each line with "echo: " and the line
echo       waits for the client, then echoes, and closes after the client's half-close
count      reads until the client half-closes, then answers with the number of bytes
trailers   answers an HTTP/1.1 request with its bytes, as a chunked body with a trailer
websocket  accepts a WebSocket upgrade and echoes text frames
"""
import base64
import hashlib
import socketserver
import sys


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        getattr(self, sys.argv[2])()

    def greet(self):
        self.request.sendall(b"220 ready\r\n")
        for line in self.request.makefile("rb"):
            self.request.sendall(b"echo: " + line)

    def echo(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)

    def count(self):
        total = 0
        while data := self.request.recv(65536):
            total += len(data)
        self.request.sendall(str(total).encode())

    def trailers(self):
        received = b""
        while not received.endswith(b"\r\n\r\n") or b"\r\n0\r\n" not in received:
            received += self.request.recv(65536)
        self.request.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            + b"%x\r\n%s\r\n0\r\nX-Sum: 42\r\n\r\n" % (len(received), received))

    def websocket(self):
        stream = self.request.makefile("rb")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.readline()
        key = [line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")]
        accept = base64.b64encode(hashlib.sha1(key[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.request.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + accept + b"\r\n\r\n")
        while header := stream.read(2):
            length = header[1] & 127
            mask = stream.read(4)
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(stream.read(length)))
            if header[0] & 15 == 8:
                self.request.sendall(bytes([0x88, 0]))
                return
            self.request.sendall(bytes([0x81, len(text)]) + text)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256


server = Server(("0.0.0.0", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()
