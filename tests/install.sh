#!/bin/sh
# Installs what is missing of the packages that demo and tests use. Without root it can only say what is missing.
set -eu
missing=""
need() { # command, package
	command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need nft nftables
need ip iproute2
need curl curl
need python3 python3
need tcpdump tcpdump
need dig dnsutils
need strace strace
need unshare util-linux
need cc gcc
need cmake cmake
python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ]; then
	echo "missing packages:$missing; install them as root: apt-get install$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086
apt-get install -q -y --no-install-recommends $missing
