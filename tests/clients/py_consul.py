"""An application that uses py-consul as if a Consul agent ran beside it. usage: py_consul.py SERVICE POD_IP"""
import sys
import time

import consul

service, pod = sys.argv[1], sys.argv[2]
c = consul.Consul()


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


def passing():
    return c.health.service(service, passing=True)[1]


step("agent.self", c.agent.self()["Config"]["Datacenter"] == "dc1")
check = consul.Check.http("http://localhost:8080/health", "1s", timeout="1s")
done = c.agent.service.register(service, service_id="py-1", address=pod, port=8080, tags=["v1"], meta={"team": "shop"},
                                check=check)
step("agent.service.register", done is True, done)
step("health.service(passing=True)", until(lambda: len(passing()) == 1), c.agent.checks())
found = passing()[0]["Service"]
step("its meta and tags", (found["Meta"], found["Tags"]) == ({"team": "shop"}, ["v1"]), found)
step("catalog", service in c.catalog.services()[1] and c.catalog.service(service)[1][0]["ServicePort"] == 8080)
step("agent.check.register", c.agent.check.register("ttl", check=consul.Check.ttl("10s"), service_id="py-1") is True)
step("agent.check.ttl_pass", passing() == [] and c.agent.check.ttl_pass("ttl") is True and len(passing()) == 1)
step("health.state", any(check["CheckID"] == "ttl" for check in c.health.state("passing")[1]))
index, _ = c.health.service(service)
start = time.time()
again, _ = c.health.service(service, index=index, wait="1s")
step("a blocking query", again == index and 0.95 <= time.time() - start <= 1.3, (index, again, time.time() - start))

# Keys, sessions, locks.
step("kv.put", c.kv.put("py/a", "1") is True and c.kv.put("py/b/c", "2") is True)
_, pair = c.kv.get("py/a")
step("kv.get", pair["Value"] == b"1", pair)
step("kv.put(cas)", c.kv.put("py/a", "2", cas=pair["ModifyIndex"] - 1) is False
     and c.kv.put("py/a", "2", cas=pair["ModifyIndex"]) is True)
step("kv.get(recurse)", [p["Key"] for p in c.kv.get("py/", recurse=True)[1]] == ["py/a", "py/b/c"])
step("kv.get(keys)", c.kv.get("py/", keys=True, separator="/")[1] == ["py/a", "py/b/"])
step("an unknown key", c.kv.get("py/none")[1] is None)
session = c.session.create(name="job", ttl=10, lock_delay=0)
other = c.session.create(name="other", lock_delay=0)
step("a lock", c.kv.put("py/lock", "me", acquire=session) is True and c.kv.put("py/lock", "him", acquire=other) is False)
step("session.info", c.session.info(session)[1]["Name"] == "job")
step("session.renew", c.session.renew(session)["ID"] == session)
step("session.destroy", c.session.destroy(session) is True and c.kv.put("py/lock", "him", acquire=other) is True)
step("session.list", other in [s["ID"] for s in c.session.list()[1]])
step("kv.delete(recurse)", c.kv.delete("py/", recurse=True) is True and c.kv.get("py/", recurse=True)[1] is None)
step("maintenance", c.agent.service.maintenance("py-1", True) is True and passing() == []
     and c.agent.service.maintenance("py-1", False) is True and len(passing()) == 1)
print("registered", flush=True)
# Visible to other programs until the input ends.
sys.stdin.read()
step("agent.service.deregister", c.agent.service.deregister("py-1") is True and c.health.service(service)[1] == [])
