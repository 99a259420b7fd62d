"""An application that registers itself as if a Consul agent ran beside it. usage: register.py POD_IP"""
import sys

import consul

pod_ip = sys.argv[1]
c = consul.Consul()
c.agent.service.register(name='order-service', service_id='order-1', address=pod_ip, port=8080, tags=['v1', 'production'])
index, services = c.health.service('order-service', passing=True)
for service in services:
    print(service['Service']['Address'], service['Service']['Port'])
