#!/bin/bash
# Builds the commit twice, in two folders with two copies of cargo's registry, and compares all files of the release. Arguments go to
# cargo; for a quicker look: --config profile.dist.lto=false --config profile.dist.opt-level=1
# The files of the first build stay in target/reproducible.
set -euo pipefail
cd "$(dirname "$0")/.."
git diff --quiet HEAD || echo "deploy/reproducible.sh: uncommitted changes are not built" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CARGO_TARGET_DIR
kept=$PWD/target/reproducible
rm -rf "$kept"
mkdir -p target

git clone --quiet . "$work/weft"
"$work/weft/deploy/build.sh" "$@"
mv "$work/weft/target/release-files" "$kept"
rm -rf "$work/weft"

second=$work/a-folder/of-another-depth
git clone --quiet . "$second"
cargo_home=${CARGO_HOME:-$HOME/.cargo}
mkdir "$work/cargo"
for file in "$cargo_home"/config.toml; do
	[ ! -e "$file" ] || cp "$file" "$work/cargo/"
done
CARGO_HOME=$work/cargo "$second/deploy/build.sh" "$@"

diff -r "$kept" "$second/target/release-files"
echo "ok: two builds of $(git rev-parse HEAD) have the same bytes"
