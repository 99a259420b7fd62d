"""The endpoints of all cases: one process that listens on many ports, reports the port in the answer, and behaves as the request demands.

usage: upstream.py FIRST_PORT LAST_PORT STUCK_PORT CONTROL_PORT

Some ports after the last one answer any bytes with their number.

`x-do` of a request has a word for each of its attempts, separated by commas; the last one is for all further attempts. A word
is a status or one of `WORDS`; `WORD@PORT+PORT|WORD@PORT` is for some ports, and the others answer 200. `x-answer` is a header of
the answer, `name: value`. Attempts are counted by `x-request-id`; GET /log/ID of the control port returns them as JSON: the port,
the connection of that port, and the request. Requests with `x-unlogged` are not counted. The stuck port never accepts a connection.
"""
import asyncio
import collections
import json
import socket
import sys

from case import BYTES

WORDS = """
reset      the connection ends without an answer
hang       no answer for half a minute
sleep:MS   200 after so many milliseconds
close      200, and the connection ends
eof        200 whose body ends with the connection
http10     200 as HTTP/1.0, and the connection ends
chunked    200 in chunks
trailers   200 in chunks with a trailer
truncated  200 that ends in the middle of its body
garbage    bytes that are not HTTP
interim:N  an informational answer and 200
upgrade    101, then an echo
big:BYTES  200 with a header so long
answer:HEX these bytes, and the connection ends
stall:MS   200 whose body stops so long in its middle
"""

first, last, stuck, control = map(int, sys.argv[1:])
attempts = collections.defaultdict(list)
connections = collections.Counter()


async def head(reader):
    """Request line and headers as they came, or None at the end."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    line, *lines = text.rstrip("\r\n").split("\r\n")
    return line.split(" "), [tuple(part.strip() for part in text.split(":", 1)) for text in lines]


async def body(reader, names):
    """The body, and its trailers."""
    if names.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(names.get("content-length", "0"))), []
    content, trailers = b"", []
    while size := int((await reader.readline()).split(b";")[0], 16):
        content += (await reader.readexactly(size + 2))[:-2]
    while line := (await reader.readline()).strip():
        trailers.append(line.decode("latin-1"))
    return content, trailers


def word_for(port, wanted):
    """The behaviour of this port."""
    for choice in wanted.split("|"):
        word, _, ports = choice.partition("@")
        if not ports or str(port) in ports.split("+"):
            return word
    return "200"


async def serve(port, reader, writer):
    connections[port] += 1
    connection = connections[port]
    while found := await head(reader):
        (method, path, _), headers = found
        names = {name.lower(): value for name, value in headers}
        if names.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            content, trailers = await body(reader, names)
        except (asyncio.IncompleteReadError, ConnectionError):
            break
        seen = [] if "x-unlogged" in names else attempts[names.get("x-request-id", "")]
        wanted = names.get("x-do", "200").split(",")
        word = word_for(port, wanted[min(len(seen), len(wanted) - 1)])
        seen.append({"port": port, "connection": connection, "method": method, "path": path, "headers": headers,
                     "body": content.decode("latin-1"), "trailers": trailers})
        try:
            if await answer(port, method, headers, word, reader, writer):
                break
        except ConnectionError:
            break
    writer.close()


async def answer(port, method, headers, word, reader, writer):
    """Carries out a word. Returns whether the connection ends."""
    word, _, number = word.partition(":")
    text = json.dumps({"port": port}).encode()
    more = "".join(f"{value}\r\n" for name, value in headers if name.lower() == "x-answer") + f"x-port: {port}\r\n"
    plain = f"content-length: {len(text)}\r\n"
    line = "HTTP/1.1 200 As Told\r\n"
    if word == "reset":
        return True
    if word == "hang":
        await asyncio.sleep(30)
        return True
    if word == "answer":
        writer.write(bytes.fromhex(number))
        await writer.drain()
        return True
    if word == "garbage":
        writer.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
        return True
    if word == "upgrade":
        writer.write(f"HTTP/1.1 101 As Told\r\nconnection: upgrade\r\nupgrade: websocket\r\n{more}\r\n".encode())
        while got := await reader.read(65536):
            writer.write(got)
            await writer.drain()
        return True
    if word == "sleep":
        await asyncio.sleep(int(number) / 1000)
    elif word == "close":
        more += "connection: close\r\n"
    elif word == "interim":
        writer.write(f"HTTP/1.1 {number} As Told\r\n\r\n".encode())
    elif word == "eof":
        plain = ""
    elif word == "http10":
        line = "HTTP/1.0 200 As Told\r\n"
    elif word == "big":
        more += f"x-big: {'b' * int(number)}\r\n"
    elif word in ("chunked", "trailers"):
        plain = "transfer-encoding: chunked\r\n"
        end = "x-after: the body\r\n" if word == "trailers" else ""
        text = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (5, text[:5], len(text) - 5, text[5:], end.encode())
    elif word == "truncated":
        text = text[:5]
    elif word in ("204", "304"):
        line, plain, text = f"HTTP/1.1 {word} As Told\r\n", "", b""
    elif word.isdigit():
        line = f"HTTP/1.1 {word} As Told\r\n"
    if method == "HEAD":
        text = b""
    writer.write(f"{line}{plain}{more}\r\n".encode() + text[:5])
    if word == "stall":
        await asyncio.sleep(int(number) / 1000)
    writer.write(text[5:])
    await writer.drain()
    return word in ("close", "eof", "http10", "truncated")


async def number(port, reader, writer):
    await reader.read(1)
    writer.write(str(port).encode())
    await writer.drain()
    writer.close()


async def serve_log(reader, writer):
    while found := await head(reader):
        path = found[0][1]
        if path.startswith("/log/"):
            answer = json.dumps(attempts.pop(path[5:], []))
        else:
            answer = json.dumps(connections)
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\n\r\n{answer}".encode())
        await writer.drain()


async def main():
    for port in range(first, last + 1):
        handle = lambda r, w, port=port: serve(port, r, w)
        await asyncio.start_server(handle, "127.0.0.1", port, backlog=512, limit=1 << 20)
    for port in BYTES:
        handle = lambda r, w, port=port: number(port, r, w)
        await asyncio.start_server(handle, "127.0.0.1", port)
    full = socket.create_server(("127.0.0.1", stuck), backlog=0)
    filling = [socket.socket() for _ in range(4)]
    for one in filling:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", stuck))
    server = await asyncio.start_server(serve_log, "127.0.0.1", control)
    print("listening", flush=True)
    await server.serve_forever()
    full.close()


asyncio.run(main())
