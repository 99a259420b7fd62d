"""A program that finds services by Consul's DNS interface. usage: dns_python.py ORDER1_IP ORDER2_IP MANY_IP"""
import sys

import dns.flags
import dns.message
import dns.query
import dns.resolver
import dns.reversename

order1, order2, many = sys.argv[1:]
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers = ['127.0.0.1']
resolver.port = 8600
resolver.lifetime = 5

found = {record.address for record in resolver.resolve('order-service.service.consul', 'A')}
assert found == {order1, order2}, found
srv = resolver.resolve('order-service.service.consul', 'SRV')
assert {record.port for record in srv} == {8080, 9090}, srv
for record in srv:
    [address] = resolver.resolve(record.target, 'A')
    assert address.address in found, address
    [name] = resolver.resolve(dns.reversename.from_address(address.address), 'PTR')
    assert name.target == record.target, name
try:
    resolver.resolve('gone.service.consul', 'A')
    raise AssertionError('there is no such service')
except dns.resolver.NXDOMAIN as error:
    [reply] = error.responses().values()
    [soa] = reply.authority
    assert soa.name.to_text() == 'consul.', soa
try:
    resolver.resolve('order-service.service.consul', 'AAAA')
    raise AssertionError('there is no IPv6 here')
except dns.resolver.NoAnswer:
    pass
# Too large for a packet of 512 bytes: truncated over UDP, complete over TCP.
query = dns.message.make_query('many.service.consul', 'SRV')
reply, over_tcp = dns.query.udp_with_fallback(query, '127.0.0.1', port=8600, timeout=5)
assert over_tcp and len(reply.answer[0]) == 40, reply
query.use_edns(payload=4096)
reply = dns.query.udp(query, '127.0.0.1', port=8600, timeout=5)
assert not reply.flags & dns.flags.TC and len(reply.answer[0]) == 40, reply
print('dnspython found', sorted(found), 'and 40 records over TCP')
