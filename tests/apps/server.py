"""An application without support for the mesh: its answers have its name, the request and the number of the connection.

usage: server.py PORT NAME [ADDRESS]; PORT may be the path of a Unix socket, or @ and its name in the abstract namespace,
and ADDRESS is then a folder with a certificate for TLS

GET /health       200, or 503 after POST /sick
GET /sleep/MS     answers after so many milliseconds
GET /status/CODE  this status
GET /bytes/N      N bytes
GET /drip/N       N bytes, one each second
GET /headers      the request's headers with their case, as JSON
GET /seen         the last thousand requests as JSON: method, path, body length, its SHA-256, host
everything else   JSON: name, connection number, requests on it, body length and SHA-256, path, headers
"""
import collections
import hashlib
import itertools
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

connections = itertools.count(1)
state = {"sick": False, "open": 0, "most": 0, "ending": False}
lock = threading.Lock()
seen = collections.deque(maxlen=1000)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are sent together, as by production servers; streams are flushed.
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self):
        self.connection_number = next(connections)
        self.requests = 0
        with lock:
            state["open"] += 1
            state["most"] = max(state["most"], state["open"])
        super().setup()

    def finish(self):
        super().finish()
        with lock:
            state["open"] -= 1

    def handle_expect_100(self):
        handled = super().handle_expect_100()
        self.wfile.flush()
        return handled

    def log_message(self, *args):
        pass

    def body(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if size == 0:
                    return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def answer(self):
        self.requests += 1
        body = self.body()
        if self.path != "/seen":
            seen.append([self.command, self.path, len(body), hashlib.sha256(body).hexdigest(), self.headers.get("host")])
        status, content = 200, None
        path = self.path.split("?")[0]
        if path == "/health":
            status = 503 if state["sick"] else 200
            content = b"sick" if state["sick"] else b"ok"
        elif path == "/seen":
            content = json.dumps(list(seen)).encode()
        elif path in ("/sick", "/well"):
            state["sick"] = path == "/sick"
        elif path.startswith("/sleep/"):
            time.sleep(int(path.split("/")[2]) / 1000)
        elif path.startswith("/status/"):
            status = int(path.split("/")[2])
        elif path.startswith("/bytes/"):
            return self.many(int(path.split("/")[2]))
        elif path.startswith("/drip/"):
            return self.many(int(path.split("/")[2]), part=b"x", pause=1)
        if content is None:
            content = json.dumps({
                "name": sys.argv[2],
                "connection": self.connection_number,
                "request": self.requests,
                "most_connections": state["most"],
                "method": self.command,
                "path": self.path,
                "body_length": len(body),
                "body_sha256": hashlib.sha256(body).hexdigest(),
                "headers": list(self.headers.items()),
                "peer": self.client_address[0],
            }).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Served-By", sys.argv[2])
        if state["ending"]:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def many(self, size, part=b"x" * 65536, pause=0):
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("X-Served-By", sys.argv[2])
        self.end_headers()
        while size > 0:
            self.wfile.write(part[:size])
            self.wfile.flush()
            time.sleep(pause)
            size -= len(part)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer


def end(server):
    server.shutdown()
    server.socket.close()
    state["ending"] = True
    until = time.monotonic() + 10
    while state["open"] > 0 and time.monotonic() < until:
        time.sleep(0.001)
    os._exit(0)


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


class UnixServer(Server):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "unix", 0

    def get_request(self):
        connection, _ = super().get_request()
        return connection, ("unix", 0)


if __name__ == "__main__":
    address = sys.argv[3] if len(sys.argv) > 3 else "0.0.0.0"
    if sys.argv[1][0] in "/@":
        # An option of TCP.
        Handler.disable_nagle_algorithm = False
        server = UnixServer(sys.argv[1].replace("@", "\0", 1), Handler)
        if len(sys.argv) > 3:
            # A folder with a certificate: the socket's clients speak TLS.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(f"{sys.argv[3]}/tls.crt", f"{sys.argv[3]}/tls.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
    else:
        server = Server((address, int(sys.argv[1])), Handler)
    # As production servers do: after SIGTERM no connection is accepted, and open ones are
    # closed after their next answer.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, args=[server]).start())
    print("listening", flush=True)
    server.serve_forever()
