"""A program with its own mutual TLS, by a certificate of its agent.

usage: leaf.py SERVICE ADDRESS PORT, on the plain Python of the system
"""
import http.client
import json
import ssl
import sys
import tempfile
import urllib.request

service, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


def query(path):
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:8500/v1/{path}"))


roots = query("agent/connect/ca/roots")
leaf = query(f"agent/connect/ca/leaf/{service}")
context = ssl.create_default_context(cadata=roots["Roots"][0]["RootCert"])
# A SPIFFE certificate names no host.
context.check_hostname = False
context.set_alpn_protocols(["weft-http/1.1"])
with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
    file.write(leaf["CertPEM"] + leaf["PrivateKeyPEM"])
    file.flush()
    context.load_cert_chain(file.name)
connection = http.client.HTTPSConnection(address, port, context=context, timeout=10)
connection.request("GET", "/")
answer = connection.getresponse()
print(json.dumps({"uri": leaf["ServiceURI"], "status": answer.status, "body": answer.read().decode()}))
