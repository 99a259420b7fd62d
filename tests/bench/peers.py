"""The peers' configurations, as comparable as they can be made: one worker, the same balancing by header, the same limits.

Envoy and HAProxy give each request an id, as Weft does. None of them writes an access log. Connections are kept alive on both
sides, but for plain byte streams.
"""
import glob
import json
import os

from measure import ROOT

# The binary itself: the package's script is Python, which some users may not run.
ENVOY = glob.glob(os.path.join(ROOT, "target/bench/venv/lib/python3*/site-packages/envoy/_bin/envoy"))[0]
ENVOY_ARGS = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"]
TYPES = "type.googleapis.com/envoy.extensions"


def command(proxy, directory, name, listen, upstreams, kind, ring=True, tls_in=None, tls_out=None):
    """The command of a peer that listens at `listen` and balances over `upstreams`.

    `kind`: "http1", "http2" (on the side of the servers, and where there is TLS; clients choose) or "tcp". `tls_in`, `tls_out`:
    folders with a certificate to show and a CA to ask for, where that side is mTLS.
    """
    path = os.path.join(directory, f"{name}.conf")
    if proxy == "envoy":
        config = json.dumps(envoy(listen, upstreams, kind, ring, tls_in, tls_out))
        started = [ENVOY, "-c", path, *ENVOY_ARGS]
        path = started[2] = path + ".json"
    elif proxy.startswith("haproxy"):
        config = haproxy(listen, upstreams, kind, ring, tls_in, tls_out, splice=proxy.endswith("splice"))
        started = ["haproxy", "-f", path, "-db"]
    else:
        config = nginx(directory, name, listen, upstreams, ring)
        started = ["nginx", "-c", path]
    with open(path, "w") as file:
        file.write(config)
    return started


def envoy(listen, upstreams, kind, ring, tls_in, tls_out):
    http = kind != "tcp"
    cluster = {
        "name": "upstream", "connect_timeout": "5s", "type": "STATIC",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(one)}} for one in upstreams]}]},
        "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 8192}]},
        "lb_policy": "RING_HASH" if ring and http else "ROUND_ROBIN",
    }
    if tls_out:
        cluster["transport_socket"] = tls(tls_out, "UpstreamTlsContext", {"http1": ["http/1.1"], "http2": ["h2"], "tcp": []}[kind])
    if kind == "http2":
        cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}
    if http:
        action = {"cluster": "upstream"}
        if ring:
            action["hash_policy"] = [{"header": {"header_name": "user-id"}}]
        network = {"name": "http", "typed_config": {
            "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench", "generate_request_id": True,
            "route_config": {"virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}],
        }}
    else:
        network = {"name": "tcp", "typed_config": {
            "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "bench", "cluster": "upstream"}}
    chain = {"filters": [network]}
    if tls_in:
        chain["transport_socket"] = tls(tls_in, "DownstreamTlsContext", ["h2", "http/1.1"] if http else [])
        chain["transport_socket"]["typed_config"]["require_client_certificate"] = True
    listener = {"name": "bench", "address": address(listen), "filter_chains": [chain]}
    return {
        "admin": {"address": address("127.0.0.1:0")},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def tls(directory, kind, alpn):
    file = lambda name: {"filename": os.path.join(directory, name)}
    return {"name": "tls", "typed_config": {
        "@type": f"{TYPES}.transport_sockets.tls.v3.{kind}",
        "common_tls_context": {
            "alpn_protocols": alpn,
            "tls_certificates": [{"certificate_chain": file("one.pem"), "private_key": file("one.key")}],
            "validation_context": {"trusted_ca": file("ca.pem")},
        }}}


def address(text):
    host, port = text.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}


def haproxy(listen, upstreams, kind, ring, tls_in, tls_out, splice):
    http = kind != "tcp"
    balance = "balance hdr(user-id)\n  hash-type consistent" if ring and http else "balance roundrobin"
    alpn = {"http1": " alpn http/1.1", "http2": " alpn h2", "tcp": ""}[kind]
    # Without TLS, and so without ALPN, HTTP/2 must be configured.
    spoken = " proto h2" if kind == "http2" else ""
    out = f" ssl crt {tls_out}/both.pem ca-file {tls_out}/ca.pem verify required{alpn}" if tls_out else spoken
    offered = " alpn h2,http/1.1" if http else ""
    into = f" ssl crt {tls_in}/both.pem ca-file {tls_in}/ca.pem verify required{offered}" if tls_in else ""
    if kind == "http2" and not tls_in and not tls_out:
        into = spoken
    servers = "\n".join(f"  server s{i} {one} maxconn 4096{out}" for i, one in enumerate(upstreams))
    id_of_request = "unique-id-format %[uuid()]\n  unique-id-header x-request-id" if http else ""
    return f"""global
  nbthread 1
  maxconn 6000
defaults
  mode {"http" if http else "tcp"}
  timeout connect 60s
  timeout client 1h
  timeout server 1h
  {"http-reuse always" if http else ""}
  {"option splice-auto" if splice else ""}
frontend in
  bind {listen}{into}
  {id_of_request}
  default_backend out
backend out
  {balance}
{servers}
"""


def nginx(directory, name, listen, upstreams, ring):
    balance = "hash $http_user_id consistent;" if ring else ""
    servers = "\n".join(f"    server {one} max_conns=4096;" for one in upstreams)
    return f"""{nginx_head(directory, name)}
  upstream out {{
    {balance}
{servers}
    keepalive 512; keepalive_requests 1000000000;
  }}
  server {{
    listen {listen} backlog=4096;
    location / {{
      proxy_pass http://out; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
"""


def nginx_head(directory, name):
    return f"""worker_processes 1;
daemon off;
pid {directory}/{name}.pid;
error_log {directory}/{name}.log crit;
worker_rlimit_nofile 65536;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_body_temp_path {directory}/{name}-body; proxy_temp_path {directory}/{name}-proxy;
  fastcgi_temp_path {directory}/{name}-f; uwsgi_temp_path {directory}/{name}-u; scgi_temp_path {directory}/{name}-s;"""


def server(directory, ports, host="127.0.0.1", http2=()):
    """The server behind all of them: 128 bytes for any request."""
    listens = "\n".join(f"    listen {host}:{port} backlog=4096;" for port in ports)
    listens += "\n".join(f"\n    listen {host}:{port} http2 backlog=4096;" for port in http2)
    path = os.path.join(directory, "server.conf")
    with open(path, "w") as file:
        file.write(f"""{nginx_head(directory, "server")}
  http2_max_concurrent_streams 1000;
  server {{
{listens}
    location / {{ return 200 "{'x' * 128}"; }}
  }}
}}
""")
    return ["nginx", "-c", path]
