"""A server with the PROXY protocol (version 1 or 2). It answers HTTP requests, and other lines, with the content of the header and the
number of the connection; it closes connections without a header.
usage: proxied.py PORT [CERTIFICATE KEY]: with these TLS begins after the header.
"""
import itertools
import socket
import socketserver
import ssl
import struct
import sys

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
context = None
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
numbers = itertools.count(1)


def exactly(connection, length):
    # Without read-ahead: TLS begins after it.
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def header(connection):
    begin = exactly(connection, 12)
    if begin == SIGNATURE:
        command, family, length = struct.unpack("!BBH", exactly(connection, 4))
        rest = exactly(connection, length)
        size = {0x11: 4, 0x21: 16}[family]
        kind = {4: socket.AF_INET, 16: socket.AF_INET6}[size]
        source, destination = (socket.inet_ntop(kind, rest[at:at + size]) for at in (0, size))
        ports = struct.unpack("!HH", rest[2 * size:2 * size + 4])
        return f"v2 {command:#x} {source} {ports[0]} {destination} {ports[1]}"
    if not begin.startswith(b"PROXY TCP"):
        raise EOFError
    while not begin.endswith(b"\r\n"):
        begin += exactly(connection, 1)
    _, _, source, destination, source_port, destination_port = begin.decode().split()
    return f"v1 {source} {source_port} {destination} {destination_port}"


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            content = header(self.request)
            stream = context.wrap_socket(self.request, server_side=True) if context else self.request
            answer = f"{content} connection {next(numbers)}".encode()
            lines = stream.makefile("rb")
            while line := lines.readline():
                if not line.rstrip().endswith(b"HTTP/1.1"):
                    stream.sendall(answer + b"\n")
                    continue
                while lines.readline() not in (b"\r\n", b""):
                    pass
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        except (EOFError, OSError):
            pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


server = Server(("0.0.0.0", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()
