// An application that uses npm's consul as if a Consul agent ran beside it. usage: npm_consul.js SERVICE POD_IP
const Consul = require("consul");

const [service, pod] = process.argv.slice(2);
const consul = new Consul();

function step(name, passed, detail) {
  if (!passed) {
    console.log(`FAILED ${name}: ${JSON.stringify(detail)}`);
    process.exit(1);
  }
  console.log(`OK ${name}`);
}

async function until(condition) {
  const end = Date.now() + 10000;
  while (Date.now() < end) {
    if (await condition()) return true;
    await new Promise((done) => setTimeout(done, 50));
  }
  return condition();
}

async function main() {
  step("agent.self", (await consul.agent.self()).Config.Datacenter === "dc1");
  step("status.leader", typeof (await consul.status.leader()) === "string");
  // All changes of the service.
  let seen = [];
  const watch = consul.watch({ method: consul.health.service, options: { service, wait: "5s" } });
  watch.on("change", (data) => { seen = data; });
  watch.on("error", (error) => step("watch", false, String(error)));
  const options = {
    name: service, id: "npm-1", address: pod, port: 8080, tags: ["v3"], meta: { team: "shop" },
    checks: [{ name: "health", http: "http://localhost:8080/health", interval: "1s" }],
  };
  await consul.agent.service.register(options);
  const passing = () => consul.health.service({ service, passing: true });
  step("health.service", await until(async () => (await passing()).length === 1), await consul.agent.check.list());
  step("watch", await until(async () => seen.length === 1 && seen[0].Service.ID === "npm-1"), seen);
  step("agent.service.list", (await consul.agent.service.list())["npm-1"].Port === 8080);
  step("catalog", service in (await consul.catalog.service.list())
    && (await consul.catalog.service.nodes(service))[0].ServiceMeta.team === "shop");
  await consul.agent.check.register({ name: "ttl", id: "ttl", serviceid: "npm-1", ttl: "10s" });
  step("critical before the first report", (await passing()).length === 0);
  await consul.agent.check.pass("ttl");
  step("agent.check.pass", (await passing()).length === 1);
  await consul.agent.check.warn("ttl");
  step("agent.check.warn", (await passing()).length === 0);
  await consul.agent.check.deregister("ttl");
  step("health.state", (await consul.health.state("passing")).some((check) => check.ServiceID === "npm-1"));
  const start = Date.now();
  const index = (await consul.health.service({ service, index: 1, wait: "1s" }), await new Promise((done) => {
    consul.health.service({ service }).then(() => done("0"));
  }));
  step("reads with an index of before are answered at once", Date.now() - start < 1000, index);

  step("kv.set", await consul.kv.set("npm/a", "1"));
  await consul.kv.set("npm/b/c", "2");
  step("kv.get", (await consul.kv.get("npm/a")).Value === "1");
  step("kv.get(recurse)", (await consul.kv.get({ key: "npm/", recurse: true })).length === 2);
  const keys = await consul.kv.keys({ key: "npm/", separator: "/" });
  step("kv.keys", JSON.stringify(keys) === '["npm/a","npm/b/"]', keys);
  step("an unknown key", (await consul.kv.get("npm/none")) === undefined);
  const session = (await consul.session.create({ name: "job", lockdelay: "1ms" })).ID;
  step("a lock", await consul.kv.set({ key: "npm/lock", value: "me", acquire: session }));
  step("session.get", (await consul.session.get(session)).Name === "job");
  await consul.session.renew(session);
  step("release", await consul.kv.set({ key: "npm/lock", value: "me", release: session }));
  await consul.session.destroy(session);
  await consul.kv.del({ key: "npm/", recurse: true });
  await consul.agent.service.maintenance({ id: "npm-1", enable: true });
  step("maintenance", (await passing()).length === 0);
  await consul.agent.service.maintenance({ id: "npm-1", enable: false });
  step("and back", (await passing()).length === 1);
  console.log("registered");
  // Visible to other programs until the input ends.
  await new Promise((done) => process.stdin.on("end", done).resume());
  await consul.agent.service.deregister("npm-1");
  step("agent.service.deregister", (await consul.health.service(service)).length === 0);
  step("the watch sees it", await until(async () => seen.length === 0), seen);
  watch.end();
  process.exit(0);
}

main().catch((error) => step("no errors", false, String(error.stack || error)));
