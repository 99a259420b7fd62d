// An application that registers with eureka-js-client as if a Eureka server ran beside it.
//
//     npm install eureka-js-client
//     node js_eureka.js APP POD_IP PORT [delta]
//
// Prints the instances that it sees, after each change. On SIGTERM it deregisters and ends. With "delta" it does not
// register, and fetches deltas instead of all instances.
const { Eureka } = require('eureka-js-client');

const [app, ip, port, delta] = process.argv.slice(2);
const client = new Eureka({
  instance: {
    app,
    hostName: ip,
    ipAddr: '127.0.0.1',
    port: { $: Number(port), '@enabled': 'true' },
    vipAddress: app,
    dataCenterInfo: {
      '@class': 'com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo',
      name: 'MyOwn',
    },
  },
  shouldUseDelta: Boolean(delta),
  eureka: {
    host: '127.0.0.1',
    port: 8761,
    heartbeatInterval: 500,
    registryFetchInterval: 200,
    registerWithEureka: !delta,
  },
});

let before = null;
setInterval(() => {
  const seen = Object.entries(client.cache.app)
    .flatMap(([name, instances]) => instances.filter((i) => i.status === 'UP').map((i) => `${name}@${i.ipAddr}:${i.port.$}`))
    .sort()
    .join(' ');
  if (seen !== before) console.log(`sees ${seen}`);
  before = seen;
}, 100);
client.on('heartbeat', () => console.log('heartbeat'));
client.start((error) => {
  if (error) throw error;
});
process.on('SIGTERM', () => {
  client.stop((error) => {
    console.log(error || 'stopped');
    process.exit(error ? 1 : 0);
  });
});
