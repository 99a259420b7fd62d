"""Sends requests in a loop, and prints the time and the server of each response, one JSON array of [seconds, status, served by].

usage: watcher.py URL HOST SECONDS

Seconds are those of CLOCK_MONOTONIC, which all processes of a machine share, at the end of each answer.
"""
import http.client
import json
import sys
import time
import urllib.parse

url, host, seconds = urllib.parse.urlsplit(sys.argv[1]), sys.argv[2], float(sys.argv[3])
end = time.monotonic() + seconds
seen = []
connection = None
print("ready", flush=True)
while time.monotonic() < end:
    try:
        connection = connection or http.client.HTTPConnection(url.hostname, url.port or 80, timeout=5)
        connection.request("GET", url.path or "/", headers={"Host": host})
        response = connection.getresponse()
        response.read()
        seen.append([time.monotonic(), response.status, response.headers.get("x-served-by", "")])
        if response.will_close:
            connection.close()
            connection = None
    except OSError:
        seen.append([time.monotonic(), 0, ""])
        connection = None
    time.sleep(0.001)
print(json.dumps(seen), flush=True)
