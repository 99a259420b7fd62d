"""Opens connections, makes one request on each, and holds them idle until standard input ends.

usage: hold.py URL CONNECTIONS HEADERS_AS_JSON
"""
import json
import resource
import socket
import sys
import urllib.parse

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
url = urllib.parse.urlsplit(sys.argv[1])
headers = {"Host": url.netloc, "user-id": "1", **json.loads(sys.argv[3])}
request = "GET / HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
held = []
for _ in range(int(sys.argv[2])):
    connection = socket.create_connection((url.hostname, url.port or 80))
    connection.sendall(request.encode())
    answer = b""
    while not answer.endswith(b"x" * 128):
        part = connection.recv(4096)
        assert part, answer
        answer += part
    held.append(connection)
print("ready", flush=True)
sys.stdin.read()
