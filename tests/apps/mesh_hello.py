"""Sends a ClientHello as sidecars do, without a client certificate, and checks for a server certificate.

usage: mesh_hello.py ADDRESS PORT SERVER_NAME

Exit status 0: the server has presented a certificate. A server that requires a client certificate refuses the connection later.
"""
import socket
import ssl
import sys

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(["weft-tcp"])
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as plain:
    # In TLS 1.3 a client is done when it has the server's certificate.
    with context.wrap_socket(plain, server_hostname=sys.argv[3]) as tls:
        print(len(tls.getpeercert(binary_form=True)))
