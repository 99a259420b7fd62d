"""Cases, and their policies as Istio's YAML."""
import dataclasses

POLICY = "networking.istio.io/v1"
# No process listens on this one; one that listens and never accepts has its queue full, so that a connection is never made.
REFUSING, STUCK = 6999, 7060

# TCP endpoints, which answer any bytes with their port.
BYTES = range(7041, 7047)

# Compared aspects: all, or those without the endpoint where that is random.
ALL = ("status", "port", "seen", "headers", "body", "attempts", "flags")
FATE = ("status", "attempts", "flags")


@dataclasses.dataclass
class Endpoint:
    port: int
    weight: int = 1
    labels: dict = dataclasses.field(default_factory=dict)
    address: str = "127.0.0.1"
    locality: str = ""
    # The locality in Envoy's configuration; Weft determines it.
    priority: int = 0


@dataclasses.dataclass
class Ask:
    """A request; `times` of it one after the other, with `{i}` in headers, path and source replaced by the number."""
    path: str = "/"
    method: str = "GET"
    # A value may be a list; `None`: without the default header.
    headers: dict = dataclasses.field(default_factory=dict)
    body: str = ""
    do: str = "200"
    times: int = 1
    at_once: int = 1
    # Seconds between the starts of concurrent requests.
    apart: float = 0
    # The client's address.
    source: str = ""
    # Raw bytes instead, with HOST and ID replaced; `answers` responses are read.
    raw: bytes = b""
    answers: int = 1
    # Pipelined on one connection: only status and port are compared.
    bulk: bool = False
    # Sent only after Envoy has ejected this many endpoints.
    ejected: int = -1
    # Repeated until the status is this one; the last response counts.
    until: int = 0
    # Instead of a request a ClientHello with this server name, `@` for the case's own host: only the port that
    # answers is known, 0 for none.
    server_name: str = ""


@dataclasses.dataclass
class Case:
    name: str
    # Of the VirtualService, and of Envoy's virtual host; none: all goes to the service.
    http: list = dataclasses.field(default_factory=list)
    envoy: list = dataclasses.field(default_factory=list)
    # Further hosts, with `@` for the case's own, and the status that each answers with: a VirtualService and a virtual host each.
    domains: list = dataclasses.field(default_factory=list)
    # Server names of TLS that a gateway passes on, with `@` as above: each leads to an endpoint of its own.
    server_names: list = dataclasses.field(default_factory=list)
    # Further configuration of Envoy's virtual host.
    host_more: dict = dataclasses.field(default_factory=dict)
    # DestinationRule's trafficPolicy, Envoy's cluster, and further configuration of Envoy's default route.
    policy: dict = dataclasses.field(default_factory=dict)
    cluster: dict = dataclasses.field(default_factory=dict)
    action: dict = dataclasses.field(default_factory=dict)
    endpoints: list = dataclasses.field(default_factory=lambda: [Endpoint(7001)])
    # Names that are the values of the label `version`; with a policy of their own and its equivalent in Envoy's cluster.
    subsets: list = dataclasses.field(default_factory=list)
    subset_policies: dict = dataclasses.field(default_factory=dict)
    subset_clusters: dict = dataclasses.field(default_factory=dict)
    asks: list = dataclasses.field(default_factory=lambda: [Ask()])
    # Number of copies of each request at other endpoints than the one that answered.
    copies: list = dataclasses.field(default_factory=list)
    # One connection for all requests.
    kept: bool = False
    same: tuple = ALL
    # A function of both results, for further conditions.
    check: object = None
    # The reason for an intended difference; `check` verifies it.
    differs: str = ""
    host: str = ""

    def further(self):
        """Names, hosts and statuses of the further hosts."""
        return [(f"{self.host}-{n}", host.replace("@", self.host), status) for n, (host, status) in enumerate(self.domains)]

    def named(self):
        """Server names, and the ports of their endpoints."""
        return [(name.replace("@", self.host), BYTES[n]) for n, name in enumerate(self.server_names)]

    def passed_on(self):
        """The documents of server names."""
        for n, (_, port) in enumerate(self.named()):
            spec = {"hosts": [f"{n}.{self.host}"], "resolution": "STATIC", "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
                    "endpoints": [{"address": "127.0.0.1", "ports": {"tls": port}}]}
            yield {"apiVersion": POLICY, "kind": "ServiceEntry", "metadata": {"name": f"{self.host}-{n}"}, "spec": spec}
        tls = [{"match": [{"sniHosts": [name]}], "route": [{"destination": {"host": f"{n}.{self.host}"}}]}
               for n, (name, _) in enumerate(self.named())]
        spec = {"hosts": [self.host, f"*.{self.host}"], "gateways": ["names"], "tls": tls}
        yield {"apiVersion": POLICY, "kind": "VirtualService", "metadata": {"name": f"{self.host}-names"}, "spec": spec}

    def yaml(self):
        """Documents, as JSON, which is YAML."""
        if self.server_names:
            yield from self.passed_on()
        for name, host, status in self.further():
            spec = {"hosts": [host], "http": [{"directResponse": {"status": status}}]}
            yield {"apiVersion": POLICY, "kind": "VirtualService", "metadata": {"name": name}, "spec": spec}
        yield {
            "apiVersion": POLICY, "kind": "ServiceEntry", "metadata": {"name": self.host},
            "spec": {
                "hosts": [self.host], "resolution": "STATIC", "location": "MESH_EXTERNAL",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                "endpoints": [{"address": e.address, "ports": {"http": e.port}, "weight": e.weight, "labels": e.labels,
                               **({"locality": e.locality} if e.locality else {})} for e in self.endpoints],
            },
        }
        if self.policy or self.subsets:
            spec = {"host": self.host}
            if self.policy:
                spec["trafficPolicy"] = self.policy
            if self.subsets:
                more = lambda subset: {"trafficPolicy": self.subset_policies[subset]} if subset in self.subset_policies else {}
                spec["subsets"] = [{"name": subset, "labels": {"version": subset}, **more(subset)} for subset in self.subsets]
            yield {"apiVersion": POLICY, "kind": "DestinationRule", "metadata": {"name": self.host}, "spec": spec}
        if self.http:
            spec = {"hosts": [self.host], "http": [self.routed(route) for route in self.http]}
            yield {"apiVersion": POLICY, "kind": "VirtualService", "metadata": {"name": self.host}, "spec": spec}

    def routed(self, route):
        """`to` is the list of destinations, written (subset, weight, more); none: the service. `@` is the service's host."""
        route = dict(route)
        if not {"redirect", "directResponse"} & route.keys():
            to = route.get("to", [("", None, {})])
            route["route"] = [
                {"destination": self.destination(subset), **({"weight": weight} if weight is not None else {}), **more}
                for subset, weight, more in to
            ]
        route.pop("to", None)
        if "mirrors" in route:
            route["mirrors"] = [{**mirror, "destination": self.destination(mirror["destination"])} for mirror in route["mirrors"]]
        if "mirror" in route:
            route["mirror"] = self.destination(route["mirror"])
        return route

    def destination(self, subset):
        return {"host": self.host, **({"subset": subset} if subset else {})}
