#!/usr/bin/env python3
"""An application that registers with py_eureka_client as if a Eureka server ran beside it.

    pip install py_eureka_client
    py_eureka.py run SERVER APP POD_IP PORT      registers and stays; prints the instances that it sees, after each change
    py_eureka.py status SERVER APP ID VALUE      overrides the status of an instance; "-" ends that

SERVER is such as http://127.0.0.1:8761/eureka/. On SIGTERM it deregisters and ends.
"""

import asyncio
import signal
import sys
import threading
import time

from py_eureka_client import eureka_basic, eureka_client

END = threading.Event()


def run(server, app, ip, port):
    signal.signal(signal.SIGTERM, lambda *_: END.set())
    client = eureka_client.init(
        eureka_server=server,
        app_name=app,
        instance_host=ip,
        instance_ip=ip,
        instance_port=int(port),
        renewal_interval_in_secs=1,
        duration_in_secs=3,
        metadata={"version": "v1"},
    )
    before = None
    while not END.is_set():
        seen = sorted(
            f"{one.name}@{instance.ipAddr}:{instance.port.port}"
            for one in client.applications.applications
            for instance in one.up_instances
        )
        if seen != before:
            print("sees", *seen, flush=True)
            before = seen
        time.sleep(0.1)
    eureka_client.stop()
    print("stopped", flush=True)


def status(server, app, instance_id, value):
    if value == "-":
        change = eureka_basic.delete_status_override(server, app, instance_id, "0")
    else:
        change = eureka_basic.status_update(server, app, instance_id, "0", value)
    asyncio.run(change)


{"run": run, "status": status}[sys.argv[1]](*sys.argv[2:])
