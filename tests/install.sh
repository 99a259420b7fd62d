#!/bin/sh
# Installs missing packages of the demo and the tests. Without root it only lists them.
set -eu
. "$(dirname "$0")/packages.sh"
need nft nftables
need ip iproute2
need curl curl
need python3 python3
need tcpdump tcpdump
need dig dnsutils
need strace strace
need etcd etcd-server
need kubectl kubernetes-client
need busybox busybox-static
need containerd containerd
need runc runc
need iptables iptables
need conntrack conntrack
need dnsmasq dnsmasq-base
need openssl openssl
[ -e /usr/lib/cni/bridge ] || missing="$missing containernetworking-plugins"
need faketime faketime
need unshare util-linux
need node nodejs
need npm npm
need cc gcc
need c++ g++
need cmake cmake
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
install_missing
