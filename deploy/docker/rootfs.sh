#!/bin/bash
# rootfs.sh BINARIES OUT: assembles the file system of the container image in the new folder OUT. It holds Weft's programs of the folder
# BINARIES, nft and ip for the redirection, the shared libraries of all five, CA certificates and a user; no shell and no package manager.
# The libraries, nft, ip and the certificates are this machine's.
set -euo pipefail
binaries=${1:?usage: rootfs.sh BINARIES OUT} out=${2:?usage: rootfs.sh BINARIES OUT}
PATH=$PATH:/usr/sbin:/sbin
# The user of Istio's sidecars: `redirect install --proxy-uid 1337` tells its traffic from the application's.
user=1337
mkdir "$out"

need() { # program, Debian package
	command -v "$1" || { echo "rootfs.sh: the program $1 is missing: install the package $2" >&2 && exit 1; }
}

nft=$(need nft nftables)
ip=$(need ip iproute2)
programs=("$binaries"/{weft-sidecar,weft-control-plane,weftctl})
install -D -t "$out/usr/local/bin" "${programs[@]}"
install -D -t "$out/usr/sbin" "$nft" "$ip"

# `name => path (address)`, and the loader's path alone. The path is kept: programs name their loader, and the loader knows the folders.
ldd "${programs[@]}" "$nft" "$ip" | sed -nE 's/^\t(.* => )?(\/[^ ]+) .*/\2/p' | sort -u | while read -r library; do
	install -D "$library" "$out$library"
done

certificates=/etc/ssl/certs/ca-certificates.crt
[ -e "$certificates" ] || { echo "rootfs.sh: $certificates is missing: install the package ca-certificates" >&2 && exit 1; }
install -D -m 644 "$certificates" "$out$certificates"

echo "root:x:0:0::/:
weft:x:$user:$user::/:" >"$out/etc/passwd"
echo "root:x:0:
weft:x:$user:" >"$out/etc/group"
echo 'hosts: files dns' >"$out/etc/nsswitch.conf"

mkdir -p "$out"/{dev,proc,run,sys,tmp}
chmod 1777 "$out/tmp"
# Where the three programs keep their state, so that a volume mounted there belongs to the user.
install -d -m 700 "$out"/var/lib/{weft,weft-sidecar,weft-gateway}
# A user namespace that maps root alone has no such user; its image is good for a test as root.
chown "$user:$user" "$out"/var/lib/weft* || echo "rootfs.sh: the folders in $out/var/lib belong to root" >&2
