"""An application that uses consulate as if a Consul agent ran beside it. usage: consulate_client.py SERVICE POD_IP"""
import json
import sys
import time
import urllib.request

import consulate

# consulate needs json.loads with an encoding, which Python 3.9 removed.
loads = json.loads
json.loads = lambda text, encoding=None: loads(text)

service, pod = sys.argv[1], sys.argv[2]
c = consulate.Consul(host="127.0.0.1", port=8500)


def step(name, passed, detail=""):
    if not passed:
        print(f"FAILED {name}: {detail!r}")
        sys.exit(1)
    print(f"OK {name}", flush=True)


def until(condition, seconds=10):
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


step("status.leader", isinstance(c.status.leader(), str))
done = c.agent.service.register(service, service_id="consulate-1", address=pod, port=8080, tags=["v2"],
                                httpcheck="http://localhost:8080/health", interval="1s")
step("agent.service.register", done is True, done)
step("health.service", until(lambda: len(c.health.service(service, passing=True)) == 1), c.agent.checks())
step("health.checks", until(lambda: c.health.checks(service)[0]["Status"] == "passing"), c.health.checks(service))
step("catalog.service", c.catalog.service(service)[0]["ServiceTags"] == ["v2"], c.catalog.service(service))
step("catalog.services", service in c.catalog.services()[0], c.catalog.services())
step("catalog.nodes", len(c.catalog.nodes()) >= 1)
c.kv["consulate/a"] = "1"
c.kv.set("consulate/b", "two")
step("kv", c.kv["consulate/a"] == "1" and "consulate/b" in c.kv and c.kv.find("consulate/") ==
     {"consulate/a": "1", "consulate/b": "two"}, c.kv.find("consulate/"))
del c.kv["consulate/a"]
step("a deleted key", c.kv.get("consulate/a") is None)
c.kv.delete("consulate/", recurse=True)
session = c.session.create(name="job", delay="0s")
step("session", c.session.info(session)["Name"] == "job", c.session.info(session))
step("a lock", c.kv.acquire_lock("consulate/lock", session) is True and c.kv.release_lock("consulate/lock", session) is True)
step("session.destroy", c.session.destroy(session) is True)
print("registered", flush=True)
sys.stdin.read()
# consulate deregisters by GET, which Consul has refused since 1.0.
request = urllib.request.Request("http://127.0.0.1:8500/v1/agent/service/deregister/consulate-1", method="PUT")
step("deregister", urllib.request.urlopen(request).status == 200 and c.health.service(service) == [])
