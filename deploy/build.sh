#!/bin/bash
# Builds a release into target/release-files: stripped programs in bin/, their debug symbols in debug/, shell completions in completions/,
# man pages in man/. Arguments go to cargo.
#
# The same commit, toolchain and C compiler give the same bytes in any folder; deploy/reproducible.sh checks it.
# Outside a git checkout, COMMIT and SOURCE_DATE_EPOCH name the commit and its time for `--version`.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=(weft-sidecar weft-control-plane weftctl)
target=${CARGO_TARGET_DIR:-target}
out=$target/release-files

version=$(cargo pkgid --locked -p weftctl)
version=${version##*[@#]}
if commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null)}; then
	SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct "$commit" --)} || {
		echo "deploy/build.sh: the time of the commit $commit is unknown here: set SOURCE_DATE_EPOCH" >&2
		exit 1
	}
	export SOURCE_DATE_EPOCH
	# Not `--short`, whose length depends on the clone.
	commit=${commit:0:7}
	[ -n "${COMMIT:-}" ] || git diff --quiet HEAD || commit+=-dirty
	version+=" ($commit, $(date -u -d "@$SOURCE_DATE_EPOCH" +%F))"
else
	echo "deploy/build.sh: no git checkout and no COMMIT: --version prints $version alone" >&2
fi
export WEFT_VERSION=$version

# The folders of the repository and of cargo occur in panic messages and debug symbols: they get fixed names.
here=$(pwd -P)
cargo_home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
if [[ $here$cargo_home == *[[:space:]]* ]]; then
	echo "deploy/build.sh: CFLAGS cannot hold a path with spaces ($here, $cargo_home): move the folder" >&2
	exit 1
fi
flags=("--remap-path-prefix=$cargo_home=/cargo" "--remap-path-prefix=$here=/weft")
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
# A CFLAGS in the environment replaces that of .cargo/config.toml: both are needed.
CFLAGS="$(sed -n 's/^CFLAGS = "\(.*\)"/\1/p' .cargo/config.toml) -ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$here=/weft"
export CARGO_ENCODED_RUSTFLAGS CFLAGS

cargo build --locked --profile dist "${programs[@]/#/--package=}" "$@"

rm -rf "$out"
mkdir -p "$out"/{bin,debug,completions,man}
for program in "${programs[@]}"; do
	objcopy --only-keep-debug --compress-debug-sections=zlib "$target/dist/$program" "$out/debug/$program.debug"
	chmod 644 "$out/debug/$program.debug"
	strip -o "$out/bin/$program" "$target/dist/$program"
	# Debuggers look for the file of this name beside the program, in .debug/ and in /usr/lib/debug.
	objcopy --add-gnu-debuglink="$out/debug/$program.debug" "$out/bin/$program"
	"$out/bin/$program" --version
done
for shell in bash zsh fish; do
	"$out/bin/weftctl" completion "$shell" >"$out/completions/weftctl.$shell"
done
"$out/bin/weftctl" man "$out/man"
"$out/bin/weft-sidecar" man "$out/man"
"$out/bin/weft-control-plane" --man "$out/man"
echo "$out:"
(cd "$out" && sha256sum -- */* | tee SHA256SUMS)
