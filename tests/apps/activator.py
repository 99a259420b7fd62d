"""Keeps listening sockets over restarts of a program, as systemd does for a .socket unit (sd_listen_fds(3)).

usage: activator.py PAUSE SOCKET... -- PROGRAM ARGUMENT...

SOCKET is tcp:ADDRESS:PORT or udp:ADDRESS:PORT. The program is started again PAUSE seconds after each end. Prints a line
`started PID` or `ended STATUS` each time.
"""
import os
import signal
import socket
import sys
import time

pause = float(sys.argv[1])
split = sys.argv.index("--")
names, program = sys.argv[2:split], sys.argv[split + 1:]
sockets = []
for name in names:
    kind, rest = name.split(":", 1)
    address, port = rest.rsplit(":", 1)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((address, int(port)))
    if kind == "tcp":
        one.listen(4096)
    sockets.append(one)
# Above the descriptors from 3 on, which the program expects.
listeners = [os.dup2(one.fileno(), 100 + n, inheritable=False) for n, one in enumerate(sockets)]


def start():
    pid = os.fork()
    if pid == 0:
        for n, fd in enumerate(listeners):
            os.dup2(fd, 3 + n, inheritable=True)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(listeners)), LISTEN_FDNAMES=":".join(f"s{n}" for n in range(len(listeners))))
        os.execvp(program[0], program)
    print("started", pid, flush=True)
    return pid


child = start()


def stop(*_):
    os.kill(child, signal.SIGKILL)
    sys.exit()


signal.signal(signal.SIGTERM, stop)
while True:
    _, status = os.waitpid(child, 0)
    print("ended", status, flush=True)
    time.sleep(pause)
    child = start()
