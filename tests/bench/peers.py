"""The peers, configured to do what Weft does in a scenario: one worker, consistent hash on `user-id`, limits, no access log.

Each function writes a configuration and returns the command that runs it. `upstreams`: addresses of the servers.
"""
import json
import os


ENVOY_ARGS = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"]
TYPES = "type.googleapis.com/envoy.extensions"


def envoy(directory, binary, port, upstreams, ring=True, http2=False):
    path = os.path.join(directory, f"envoy-{port}.json")
    with open(path, "w") as file:
        json.dump(envoy_config(port, upstreams, ring, http2_out=http2), file)
    return [binary, "-c", path, *ENVOY_ARGS]


def envoy_config(port, upstreams, ring=True, tls_in=None, tls_out=None, http2_out=False):
    """`tls_in`, `tls_out`: folders with a certificate to show and a CA to ask for, where that side is mTLS."""
    cluster = {
        "name": "upstream", "connect_timeout": "5s", "type": "STATIC",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(one)}} for one in upstreams]}]},
        "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 8192}]},
        "lb_policy": "RING_HASH" if ring else "ROUND_ROBIN",
    }
    if tls_out:
        cluster["transport_socket"] = tls(tls_out, "UpstreamTlsContext", ["h2"] if http2_out else ["http/1.1"])
    if http2_out:
        cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}
    action = {"cluster": "upstream"}
    if ring:
        action["hash_policy"] = [{"header": {"header_name": "user-id"}}]
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench", "generate_request_id": True,
        "route_config": {"virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls_in:
        chain["transport_socket"] = tls(tls_in, "DownstreamTlsContext", ["h2", "http/1.1"])
        chain["transport_socket"]["typed_config"]["require_client_certificate"] = True
    listener = {"name": "bench", "address": address(f"127.0.0.1:{port}"), "filter_chains": [chain]}
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


def haproxy_chain(directory, http2):
    alpn = "h2" if http2 else "http/1.1"
    return f"""global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend first
  bind 127.0.0.1:10021
  unique-id-format %[uuid()]
  unique-id-header x-request-id
  default_backend between
backend between
  balance hdr(user-id)
  hash-type consistent
  server b 127.0.0.1:10022 ssl crt {directory}/both.pem ca-file {directory}/ca.pem verify required alpn {alpn} maxconn 4096
frontend second
  bind 127.0.0.1:10022 ssl crt {directory}/both.pem ca-file {directory}/ca.pem verify required alpn h2,http/1.1
  default_backend out
backend out
  server s 127.0.0.1:9000 maxconn 4096
"""


def address(text):
    host, port = text.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}


def haproxy(directory, port, upstreams, ring=True, http2=False):
    balance = "balance hdr(user-id)\n  hash-type consistent" if ring else "balance roundrobin"
    proto = " proto h2" if http2 else ""
    servers = "\n".join(f"  server s{i} {one} maxconn 4096{proto}" for i, one in enumerate(upstreams))
    path = os.path.join(directory, f"haproxy-{port}.cfg")
    with open(path, "w") as file:
        file.write(f"""global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend in
  bind 127.0.0.1:{port}{proto}
  unique-id-format %[uuid()]
  unique-id-header x-request-id
  default_backend out
backend out
  {balance}
{servers}
""")
    return ["haproxy", "-f", path, "-db"]


def nginx(directory, port, upstreams, ring=True):
    balance = "hash $http_user_id consistent;" if ring else ""
    servers = "\n".join(f"    server {one} max_conns=4096;" for one in upstreams)
    path = os.path.join(directory, f"nginx-{port}.conf")
    with open(path, "w") as file:
        file.write(f"""worker_processes 1;
daemon off;
pid {directory}/nginx-{port}.pid;
error_log {directory}/nginx-{port}.log crit;
worker_rlimit_nofile 65536;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  upstream out {{
    {balance}
{servers}
    keepalive 512; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://out; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
""")
    return ["nginx", "-c", path]


def upstream(directory, ports, host="127.0.0.1", http2=()):
    """The server behind all of them: 128 bytes for any request."""
    listens = "\n".join(f"    listen {host}:{port} backlog=4096;" for port in ports)
    listens += "\n".join(f"\n    listen {host}:{port} http2 backlog=4096;" for port in http2)
    path = os.path.join(directory, "upstream.conf")
    with open(path, "w") as file:
        file.write(f"""worker_processes 1;
daemon off;
pid {directory}/upstream.pid;
error_log {directory}/upstream.log crit;
worker_rlimit_nofile 65536;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  http2_max_concurrent_streams 1000;
  client_body_temp_path {directory}/ubody; proxy_temp_path {directory}/uproxy; fastcgi_temp_path {directory}/uf;
  uwsgi_temp_path {directory}/uu; scgi_temp_path {directory}/us;
  server {{
{listens}
    location / {{ return 200 "{'x' * 128}"; }}
  }}
}}
""")
    return ["nginx", "-c", path]
