"""The peers, configured to do what Weft does in a scenario: one worker, consistent hash on `user-id`, limits, no access log.

Each function writes a configuration and returns the command that runs it. `upstreams`: addresses of the servers.
"""
import json
import os


def envoy(directory, binary, port, upstreams, ring=True):
    endpoints = [{"endpoint": {"address": address(one)}} for one in upstreams]
    cluster = {
        "name": "upstream", "connect_timeout": "5s", "type": "STATIC",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 8192}]},
        "lb_policy": "RING_HASH" if ring else "ROUND_ROBIN",
    }
    action = {"cluster": "upstream"}
    if ring:
        action["hash_policy"] = [{"header": {"header_name": "user-id"}}]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench", "generate_request_id": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }
    listener = {
        "name": "bench", "address": address(f"127.0.0.1:{port}"),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    config = {
        "admin": {"address": address("127.0.0.1:0")},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }
    path = os.path.join(directory, f"envoy-{port}.json")
    with open(path, "w") as file:
        json.dump(config, file)
    return [binary, "-c", path, "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"]


def address(text):
    host, port = text.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}


def haproxy(directory, port, upstreams, ring=True):
    balance = "balance hdr(user-id)\n  hash-type consistent" if ring else "balance roundrobin"
    servers = "\n".join(f"  server s{i} {one} maxconn 4096" for i, one in enumerate(upstreams))
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
  bind 127.0.0.1:{port}
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


def upstream(directory, ports):
    """The server behind all of them: 128 bytes for any request."""
    listens = "\n".join(f"    listen 127.0.0.1:{port} backlog=4096;" for port in ports)
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
  client_body_temp_path {directory}/ubody; proxy_temp_path {directory}/uproxy; fastcgi_temp_path {directory}/uf;
  uwsgi_temp_path {directory}/uu; scgi_temp_path {directory}/us;
  server {{
{listens}
    location / {{ return 200 "{'x' * 128}"; }}
  }}
}}
""")
    return ["nginx", "-c", path]
