"""An HTTP/1.1 server with exact control of its bytes; the path of a request selects the behaviour.

usage: wire_server.py PORT

/early       answers from the head alone, keeps the connection, and reads the body afterwards
/early-413   answers 413 from the head alone, and closes after a second in which it reads nothing
/refuse      417 to a request that expects 100-continue, from its head
/want        100 Continue, then the body, and its length in the answer
/hints       103 Early Hints before the answer
/answer?RAW  the answer is RAW, percent-encoded, and the connection ends
/second      the second request of a connection ends it without an answer
/upgrade     101 for any protocol, then an echo
/length      reads the body, and answers with its length
else         the request line, headers and trailers, unchanged
"""
import socketserver
import sys
import time
import urllib.parse


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.count = 0
        try:
            while head := self.head():
                self.count += 1
                if self.serve(head):
                    return
        except (ConnectionError, ValueError):
            pass

    def head(self):
        lines = []
        while line := self.rfile.readline():
            if line == b"\r\n":
                return lines
            lines.append(line)
        return None

    def header(self, head, name):
        for line in head[1:]:
            known, _, value = line.partition(b":")
            if known.strip().lower() == name:
                return value.strip()
        return b""

    def body(self, head):
        """The body's length, and its trailers."""
        if self.header(head, b"transfer-encoding").lower() == b"chunked":
            length = 0
            while size := int(self.rfile.readline().split(b";")[0], 16):
                length += len(self.rfile.read(size + 2)) - 2
            return length, self.head()
        left = length = int(self.header(head, b"content-length") or 0)
        while left:
            data = self.rfile.read1(min(left, 65536))
            if not data:
                raise ConnectionError
            left -= len(data)
        return length, []

    def say(self, text, status=b"200 OK", more=b""):
        self.wfile.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(text), more, text))
        self.wfile.flush()

    def serve(self, head):
        """Whether the connection ends."""
        target = head[0].split(b" ")[1]
        path = urllib.parse.urlsplit(target.decode("latin-1")).path
        if path == "/early":
            self.say(b"early")
            self.body(head)
        elif path == "/early-413":
            self.say(b"too much", b"413 Content Too Large", b"Connection: close\r\n")
            time.sleep(1)
            return True
        elif path == "/refuse":
            self.say(b"no", b"417 Expectation Failed")
            return True
        elif path == "/want":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.say(b"%d" % self.body(head)[0])
        elif path == "/hints":
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
            self.say(b"hinted")
        elif path == "/answer":
            self.body(head)
            self.wfile.write(urllib.parse.unquote_to_bytes(target.split(b"?", 1)[1]))
            return True
        elif path == "/second" and self.count > 1:
            return True
        elif path == "/upgrade":
            token = self.header(head, b"upgrade")
            self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\n" % token)
            while data := self.rfile.read1(65536):
                self.wfile.write(data)
            return True
        elif path == "/length":
            self.say(b"%d" % self.body(head)[0])
        else:
            trailers = self.body(head)[1]
            self.say(b"".join(head) + b"--trailers--\r\n" + b"".join(trailers))
        return False


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128


server = Server(("0.0.0.0", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()
