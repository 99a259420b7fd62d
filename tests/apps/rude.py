"""Clients that misbehave. Prints one line "ready" once all connections are open, and the outcome at the end.

usage: rude.py slow HOST PORT CONNECTIONS      heads that are sent byte by byte, until the end of the process
       rude.py unread HOST PORT CONNECTIONS    requests for 100 MB each, and no reads, until the end of the process
       rude.py headers HOST PORT MEGABYTES     one request with so many megabytes of headers; prints the status line
       rude.py half-close HOST PORT PATH       a request and the end of the sending side; prints the status line
"""
import signal
import socket
import sys
import threading
import time

mode, host, port, argument = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]


def connect():
    connection = socket.create_connection((host, port), timeout=20)
    return connection


def status_line(connection):
    answer = b""
    try:
        while b"\r\n" not in answer:
            part = connection.recv(4096)
            if not part:
                break
            answer += part
    except OSError as error:
        return f"error {error}"
    return answer.split(b"\r\n")[0].decode() or "closed"


if mode in ("slow", "unread"):
    connections = [connect() for _ in range(int(argument))]
    if mode == "unread":
        for connection in connections:
            connection.sendall(b"GET /bytes/100000000 HTTP/1.1\r\nHost: order-service\r\n\r\n")
    else:
        for connection in connections:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: order-service\r\nx-slow: ")

        def drip():
            while True:
                time.sleep(0.1)
                for connection in connections:
                    connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
    print("ready", flush=True)
    signal.pause()
elif mode == "headers":
    connection = connect()
    line = b"x-large: " + b"x" * 8000 + b"\r\n"
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: order-service\r\n")
        for _ in range(int(argument) * 1_000_000 // len(line)):
            connection.sendall(line)
        connection.sendall(b"\r\n")
    except OSError:
        pass  # refused early: the response can be read, or the connection was reset
    print(status_line(connection))
elif mode == "half-close":
    connection = connect()
    connection.sendall(f"GET {argument} HTTP/1.1\r\nHost: order-service\r\n\r\n".encode())
    connection.shutdown(socket.SHUT_WR)
    print(status_line(connection))
