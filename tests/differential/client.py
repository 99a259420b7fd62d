"""An HTTP/1.1 client that reports details of the wire: informational answers, trailers, whether the connection ended."""
import dataclasses
import socket


@dataclasses.dataclass
class Answer:
    status: int
    headers: list
    body: bytes = b""
    trailers: list = dataclasses.field(default_factory=list)
    # Statuses of the informational answers before it.
    interim: list = dataclasses.field(default_factory=list)
    # The connection ended in its middle.
    cut: bool = False

    def values(self, name):
        return [value for known, value in self.headers if known.lower() == name]


NONE = Answer(0, [])


class Connection:
    def __init__(self, port, source=""):
        self.socket = socket.create_connection(("127.0.0.1", port), 20, (source, 0) if source else None)
        self.reader = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def answer(self, method="GET"):
        """The next answer; `NONE` where the connection ends instead."""
        interim = []
        while True:
            try:
                line = self.reader.readline()
                if not line.startswith(b"HTTP/1."):
                    return NONE
                answer = Answer(int(line.split(b" ", 2)[1]), self.fields(), interim=interim)
            except ConnectionError:
                return NONE
            if answer.status >= 200 or answer.status == 101:
                break
            interim.append(answer.status)
        try:
            self.body(answer, method)
        except (EOFError, ConnectionError):
            answer.cut = True
        return answer

    def fields(self):
        found = []
        while line := self.reader.readline().rstrip(b"\r\n"):
            name, _, value = line.decode("latin-1").partition(":")
            found.append((name, value.strip()))
        return found

    def body(self, answer, method):
        length, coding = answer.values("content-length"), answer.values("transfer-encoding")
        if method == "HEAD" or answer.status in (101, 204, 304):
            return
        if coding:
            while size := int(self.line(), 16):
                answer.body += self.exactly(size)
                self.line()
            answer.trailers = self.fields()
        elif length:
            answer.body = self.exactly(int(length[0]))
        else:
            answer.body = self.reader.read()

    def line(self):
        line = self.reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line.split(b";")[0]

    def exactly(self, size):
        read = self.reader.read(size)
        if len(read) < size:
            raise EOFError
        return read

    def ends(self):
        """Whether the peer ends it."""
        self.socket.settimeout(1)
        try:
            return self.reader.read(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self):
        self.reader.close()
        self.socket.close()
