"""Silent connections, or connections with one request for a path each. usage: silent.py ADDRESS PORT COUNT [PATH]; they stay open until the end of the input.
Prints "open", and with a path the number of 429 responses."""
import resource
import selectors
import socket
import sys
import time

limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connections, waiting, refused = [], selectors.DefaultSelector(), 0
for _ in range(count):
    one = socket.create_connection((address, port), timeout=10)
    if len(sys.argv) > 4:
        one.sendall(f"GET {sys.argv[4]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        waiting.register(one, selectors.EVENT_READ)
    connections.append(one)
end = time.monotonic() + (2 if len(sys.argv) > 4 else 0)
while time.monotonic() < end:
    for key, _ in waiting.select(0.1):
        waiting.unregister(key.fileobj)
        try:
            refused += b" 429 " in key.fileobj.recv(64)
        except OSError:
            pass
print("open", refused, flush=True)
sys.stdin.read()
