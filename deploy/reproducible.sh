#!/bin/bash
# Builds the commit twice, in two folders with two copies of cargo's registry, and compares all files of the release. Arguments go to
# cargo; for a quicker look: --config profile.dist.lto=false --config profile.dist.opt-level=1
# The files of both builds stay in target/reproducible.
set -euo pipefail
cd "$(dirname "$0")/.."
git diff --quiet HEAD || echo "deploy/reproducible.sh: uncommitted changes are not built" >&2
commit=$(git rev-parse HEAD)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CARGO_TARGET_DIR
kept=$PWD/target/reproducible
rm -rf "$kept"
mkdir -p "$kept"

build() { # folder, name of the result, arguments for cargo...
	local folder=$1 name=$2
	shift 2
	git clone --quiet --no-checkout . "$folder"
	git -C "$folder" checkout --quiet --detach "$commit"
	"$folder/deploy/build.sh" "$@"
	mv "$folder/target/release-files" "$kept/$name"
	rm -rf "$folder"
}

build "$work/weft" first "$@"

# The other copy of the registry is downloaded, by the user's settings.
mkdir "$work/cargo"
settings=${CARGO_HOME:-$HOME/.cargo}/config.toml
[ ! -e "$settings" ] || cp "$settings" "$work/cargo/"
export CARGO_HOME=$work/cargo
build "$work/a-folder/of-another-depth" second "$@"

diff -r "$kept/first" "$kept/second"
echo "ok: two builds of $commit have the same bytes"
