"""A client of many connections, with one request each. Prints "ready" after that.

usage: many.py hold HOST PORT COUNT     keeps them open and idle until the end of the process
       many.py churn HOST PORT COUNT    closes each before the next, eight at a time
"""
import os
import resource
import signal
import socket
import struct
import sys
import threading

mode, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
REQUEST = b"GET / HTTP/1.1\r\nHost: order-service\r\n\r\n"


def ask():
    connection = socket.create_connection((host, port), timeout=20)
    connection.sendall(REQUEST)
    answer = connection.recv(65536)
    while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
        part = connection.recv(65536)
        if not part:
            break
        answer += part
    if not answer.startswith(b"HTTP/1.1 200"):
        # The whole process: this may be one of its threads.
        print(f"an answer: {answer!r}", flush=True)
        os._exit(1)
    return connection


if mode == "hold":
    connections = [ask() for _ in range(count)]
    print("ready", flush=True)
    signal.pause()
else:
    def churn():
        for _ in range(count // 8):
            connection = ask()
            # Reset, not closed: otherwise all ports of the pod would be in TIME_WAIT.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("ready", flush=True)
