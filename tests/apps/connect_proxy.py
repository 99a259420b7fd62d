"""An HTTP/1.1 proxy for tunnels, by CONNECT and by POST. usage: connect_proxy.py PORT REFUSED; the answer to a request
for port REFUSED is 403. Prints each method and target."""
import socket
import socketserver
import sys
import threading


def copy(read, write, end):
    try:
        while data := read():
            write(data)
        end()
    except OSError:
        pass


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        method, target, _ = self.rfile.readline().decode().split()
        headers = {}
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            name, value = line.decode().split(":", 1)
            headers[name.lower()] = value.strip()
        host, port = headers["host"].rsplit(":", 1)
        if method == "CONNECT" and target != headers["host"]:
            return self.answer(b"400 Bad Request")
        print(method, headers["host"], flush=True)
        if port == sys.argv[2]:
            return self.answer(b"403 Forbidden")
        far = socket.create_connection((host, int(port)), timeout=30)
        if method == "CONNECT":
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            there = lambda: self.rfile.read1(65536)
            back, end = self.wfile.write, lambda: self.connection.shutdown(socket.SHUT_WR)
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            there = self.chunk
            back = lambda data: self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")
            end = lambda: self.wfile.write(b"0\r\n\r\n")
        out = threading.Thread(target=copy, args=(there, far.sendall, lambda: far.shutdown(socket.SHUT_WR)), daemon=True)
        out.start()
        copy(lambda: far.recv(65536), back, end)
        out.join(30)

    def chunk(self):
        length = int(self.rfile.readline(), 16)
        data = self.rfile.read(length)
        self.rfile.readline()
        return data

    def answer(self, status):
        self.wfile.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


server = Server(("0.0.0.0", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()
