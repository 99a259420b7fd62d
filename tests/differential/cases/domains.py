"""The host whose routes a request takes, and the server name whose routes TLS takes: an exact one first, else the longest wildcard. `@` is
the case's own host. (Of server names Envoy takes no wildcards for a part of a label.)"""
from case import Ask, Case


def domains(name, hosts, names):
    """Each of the hosts answers by its number."""
    return Case(f"domains: {name}", domains=[(host, 201 + n) for n, host in enumerate(hosts)], asks=[Ask(headers={"Host": one}) for one in names],
                same=("status", "flags"))


def by_server_name(name, names, queries):
    """TLS by server name."""
    return Case(f"server names: {name}", server_names=names, asks=[Ask(server_name=one) for one in queries], same=("port",))


PARTS = ["*-@", "*@", "*.@", "a-@"]
CASES = [
    domains("a wildcard of names below", ["*.@"], ["a.@", "a.b.@", "A.@", "..@"]),
    domains("a wildcard of a part of a label", ["*-@"], ["a-@", "a.b-@", "a--@", "A-@", "--@"]),
    domains("a wildcard that begins in a label", ["*@"], ["a@", "a.@", "a-@", "-@", ".@"]),
    domains("the longest wildcard before all others", PARTS, ["x-@", "a-@", "-@", "x@", "x.@", "a.x-@", "a-.@", "-x.@"]),
    domains("the longest wildcard, whatever the order", PARTS[::-1], ["x-@", "a-@", "-@", "x@", "x.@", "a.x-@"]),
    domains("wildcards one within the other", ["*o-@", "*oo-@", "*-@", "*.foo-@"], ["foo-@", "oo-@", "o-@", "a-@", "zoo-@", "a.foo-@", ".foo-@"]),
    domains("a star stands for one character at least", ["*b-@", "*-@"], ["ab-@", "b-@", "bb-@"]),
    domains("an exact host beside its wildcard", ["*eu-@", "eu-@", "*-@"], ["eu-@", "aeu-@", "xu-@", "a.eu-@"]),
    by_server_name("an exact one", ["a.@"], ["a.@", "A.@", "b.@", "b.a.@", "@"]),
    by_server_name("a wildcard of names below", ["*.@"], ["a.@", "a.b.@", "A.@", "@", "a@"]),
    by_server_name("the longest wildcard", ["*.@", "*.b.@", "a.b.@"], ["a.@", "a.b.@", "c.b.@", "d.c.b.@", "b.@", "@"]),
    by_server_name("the longest wildcard, whatever the order", ["a.b.@", "*.b.@", "*.@"], ["a.@", "a.b.@", "c.b.@", "d.c.b.@", "b.@", "@"]),
    by_server_name("a wildcard beside the name that it is of", ["*.@", "@"], ["@", "a.@", "A.@"]),
]
