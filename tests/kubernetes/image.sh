#!/bin/bash
# image.sh ROOTFS NAME OUT [USER]: makes a docker archive OUT of one layer, the folder ROOTFS, without an engine.
set -euo pipefail
rootfs=${1:?usage: image.sh ROOTFS NAME OUT [USER]} name=${2:?a name} out=${3:?a file} user=${4:-0:0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -C "$rootfs" --sort=name --mtime=@0 --numeric-owner -cf "$work/layer.tar" .
sum=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"User\":\"$user\",\"Env\":[\"PATH=/usr/local/bin:/usr/sbin:/bin\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$sum\"]}}" >"$work/config.json"
echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"$name\"],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
tar -C "$work" -cf "$out" manifest.json config.json layer.tar
