#!/usr/bin/env python3
"""An application that uses python-consul as if a Consul agent ran beside it.

    pip install python-consul
    python_consul.py POD_IP [AGENT_PORT]

Runs inside a pod whose sidecar serves the agent API and whose token names order-service. Prints a line for each step
and exits 1 at the first one that fails. It listens on 8080 of the pod itself, for the health checks.
"""

import base64
import http.server
import sys
import threading
import time

import consul

POD = sys.argv[1]
AGENT = int(sys.argv[2]) if len(sys.argv) > 2 else 8500
SERVICE = "order-service"

c = consul.Consul(port=AGENT)


def step(name, passed, detail=""):
    if not passed:
        print(f"FAILED {name}: {detail!r}")
        sys.exit(1)
    print(f"OK {name}")


def until(condition, seconds=10):
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def passing():
    return c.health.service(SERVICE, passing=True)[1]


class Health(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        body = b"well" if Health.status == 200 else b"ill"
        self.send_response(Health.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("", 8080), Health)
threading.Thread(target=server.serve_forever, daemon=True).start()

# The agent.
me = c.agent.self()
step("agent.self", me["Config"]["Datacenter"] == "dc1" and me["Member"]["Name"] == me["Config"]["NodeName"], me)
step("agent.members", c.agent.members()[0]["Name"] == me["Config"]["NodeName"])
step("status", isinstance(c.status.leader(), str) and isinstance(c.status.peers(), list))
step("catalog.datacenters", c.catalog.datacenters() == ["dc1"])

# Registration.
done = c.agent.service.register(name="order-service", service_id="order-1", address=POD, port=8080,
                                tags=["v1", "production"])
step("agent.service.register", done is True, done)
index, services = c.health.service("order-service", passing=True)
step("health.service(passing=True)", len(services) == 1, services)
found = services[0]
service = found["Service"]
step("its service", (service["ID"], service["Service"], service["Address"], service["Port"], service["Tags"])
     == ("order-1", "order-service", POD, 8080, ["v1", "production"]), service)
step("its node", found["Node"]["Node"] == me["Config"]["NodeName"] and found["Node"]["Address"] == POD, found["Node"])
step("its checks", [check["CheckID"] for check in found["Checks"]] == ["serfHealth"], found["Checks"])
step("the index", int(index) >= 1, index)
step("by tag", len(c.health.service(SERVICE, tag="v1")[1]) == 1 and c.health.service(SERVICE, tag="v2")[1] == [])
step("agent.services", c.agent.services()["order-1"]["Tags"] == ["v1", "production"])
_, listed = c.catalog.services()
step("catalog.services", sorted(listed[SERVICE]) == ["production", "v1"], listed)
_, items = c.catalog.service(SERVICE)
step("catalog.service", (items[0]["ServiceID"], items[0]["ServiceAddress"], items[0]["ServicePort"])
     == ("order-1", POD, 8080), items)
_, nodes = c.catalog.nodes()
step("catalog.nodes", me["Config"]["NodeName"] in [node["Node"] for node in nodes], nodes)
step("an unknown service", c.health.service("unknown")[1] == [])

# A TTL check.
step("agent.check.register", c.agent.check.register("heartbeat", check=consul.Check.ttl("1s"), service_id="order-1") is True)
step("critical before the first report", passing() == [])
step("agent.check.ttl_pass", c.agent.check.ttl_pass("heartbeat", notes="all well") is True)
step("passing after it", len(passing()) == 1)
_, checks = c.health.checks(SERVICE)
step("health.checks", [(k["CheckID"], k["Status"], k["Output"]) for k in checks]
     == [("heartbeat", "passing", "all well")], checks)
step("critical when the report is missed", until(lambda: passing() == [], 4))
output = c.agent.checks()["heartbeat"]["Output"]
step("a check without a report expires", output == "TTL expired (last output before timeout follows): all well", output)
step("agent.check.ttl_warn", c.agent.check.ttl_warn("heartbeat") is True and passing() == [])
step("a warning is listed", len(c.health.service(SERVICE)[1]) == 1)
step("agent.check.deregister", c.agent.check.deregister("heartbeat") is True and len(passing()) == 1)

# Maintenance.
step("maintenance on", c.agent.service.maintenance("order-1", True, "new disk") is True and passing() == [])
names = [check["Name"] for check in c.health.checks(SERVICE)[1]]
step("its check", names == ["Service Maintenance Mode"], names)
step("maintenance off", c.agent.service.maintenance("order-1", False) is True and len(passing()) == 1)

# Blocking queries.
index, _ = c.health.service(SERVICE)
start = time.time()
again, _ = c.health.service(SERVICE, index=index, wait="1s")
duration = time.time() - start
step("a blocking query is held", again == index and 0.95 <= duration <= 1.0 + 1 / 16 + 0.1, (index, again, duration))
threading.Timer(0.5, lambda: consul.Consul(port=AGENT).agent.service.maintenance("order-1", True)).start()
start = time.time()
woken, _ = c.health.service(SERVICE, index=index, wait="10s")
step("and woken by a change", int(woken) > int(index) and 0.3 <= time.time() - start <= 3, (index, woken))
c.agent.service.maintenance("order-1", False)

# An HTTP check on localhost, which the agent makes in this pod.
check = consul.Check.http("http://localhost:8080/health", interval="1s", timeout="1s", deregister="10m")
step("with an HTTP check", c.agent.service.register(SERVICE, service_id="order-1", address=POD, port=8080,
                                                    tags=["v1"], check=check) is True)
step("it passes", until(lambda: len(passing()) == 1, 5), c.agent.checks())
output = c.agent.checks()["service:order-1"]["Output"]
step("its output", output == "HTTP GET http://localhost:8080/health: 200 OK Output: well", output)
Health.status = 503
step("it fails with the application", until(lambda: passing() == [], 5))
Health.status = 200
step("and recovers with it", until(lambda: len(passing()) == 1, 5))

# Mesh-wide: transactions, events, prepared queries, coordinates.
key = base64.b64encode(b"new").decode()
done = c.txn.put([{"KV": {"Verb": "set", "Key": "a/1", "Value": key}}, {"KV": {"Verb": "get", "Key": "a/1"}}])
step("txn.put", [r["KV"]["Value"] for r in done["Results"]] == [None, key] and done["Errors"] is None, done)
fired = c.event.fire("deploy", body="v2", service=SERVICE)
events = c.event.list(name="deploy")[1]
step("event.fire and event.list", [e["ID"] for e in events] == [fired["ID"]] and events[0]["Payload"] == b"v2", events)
query = c.query.create(SERVICE, name="orders", onlypassing=True, tags=["v1"], ttl="10s")
found = c.query.execute("orders")
step("query.create and query.execute", [n["Service"]["Port"] for n in found["Nodes"]] == [8080], found)
step("query.list", [q["ID"] for q in c.query.list()] == [query["ID"]])
step("query.delete", c.query.delete(query["ID"]) is True and c.query.list() == [])
nodes = {n["Node"] for n in c.coordinate.nodes()[1]}
step("coordinate.nodes", c.agent.self()["Config"]["NodeName"] in nodes, nodes)
step("catalog.register of the own node", c.catalog.register(c.agent.self()["Config"]["NodeName"], POD) is True)

# Refusals.
try:
    refused = c.agent.service.register("payment-service", port=8080) is False
except consul.base.ConsulException:
    refused = True
step("a service that the token does not name", refused)
try:
    refused = c.agent.service.register(SERVICE, port=8080, check=consul.Check.http("http://192.0.2.1/", "1s")) is False
except consul.base.ConsulException:
    refused = True
step("a check of another host", refused)

# The end.
step("agent.service.deregister", c.agent.service.deregister("order-1") is True)
step("it is gone", c.health.service(SERVICE)[1] == [] and c.agent.services() == {})
step("and unknown", c.agent.service.deregister("order-1") is False)
