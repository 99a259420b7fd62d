#!/bin/bash
# Runs each fuzz target for so many seconds, guided by coverage: run.sh SECONDS. The corpus stays in target/fuzz; its seeds are
# the policies of the differential cases.
set -eu
cd "$(dirname "$0")/../.."
seconds=$1
cargo build --locked -p weft-fuzz --bin fuzz-seeds
RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/rustc.sh \
	cargo build --locked -p weft-fuzz --bin fuzz-matcher --bin fuzz-yaml --bin fuzz-compile
bin=target/debug out=target/fuzz
mkdir -p "$out/policies"
python3 tests/differential/driver.py write "$out" "$out/policies" 1 2 3 4
"$bin/fuzz-seeds" "$out/seeds" "$out"/policies/*.yaml deploy/demo/*.yaml
failed=0
for target in matcher yaml compile; do
	mkdir -p "$out/$target"
	# The longest input takes a hundredth of the time-out.
	if "$bin/fuzz-$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 \
		-artifact_prefix="$out/$target-" "$out/$target" "$out/seeds/$target" >"$out/$target.log" 2>&1; then
		runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$target.log")
		echo "ok: fuzz $target: $runs inputs in $seconds s, $(grep -o 'cov: [0-9]*' "$out/$target.log" | tail -1)"
	else
		tail -40 "$out/$target.log"
		echo "FAILED: fuzz $target: the input is beside $out/$target.log"
		failed=1
	fi
done
exit $failed
