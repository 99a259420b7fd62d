"""A name server over UDP. usage: name_server.py FILE; the file is JSON, {"name": ["10.0.0.1", ...]}, and read for each query.
The TTL is a second. The answer for other names is NXDOMAIN."""
import json
import socket
import struct
import sys

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 53))
print("listening", flush=True)
while True:
    query, peer = server.recvfrom(4096)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    print("query", ".".join(labels), flush=True)
    question = query[12:at + 5]
    kind = struct.unpack("!H", query[at + 1:at + 3])[0]
    with open(sys.argv[1]) as file:
        found = json.load(file).get(".".join(labels).lower())
    records = [b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(one) for one in found or [] if kind == 1]
    flags = 0x8180 | (3 if found is None else 0)
    server.sendto(query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + question + b"".join(records), peer)
