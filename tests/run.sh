#!/bin/bash
# Runs every group of tests, prints the time and the result of each, and ends with `N passed, N failed`.
# Budgets are minutes of wall clock; a group far over its budget fails.
set -u
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
passed=0 failed=0 summary=""
log=$(mktemp)
trap 'rm -f "$log"' EXIT

group() { # name, budget in minutes, command...
	local name=$1 budget=$2 start=$SECONDS status took p f
	shift 2
	echo "=== $name"
	"$@" 2>&1 | tee "$log"
	status=${PIPESTATUS[0]}
	took=$((SECONDS - start))
	p=$(sed -n 's/^test result: .* \([0-9][0-9]*\) passed; .*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
	f=$(sed -n 's/^test result: .* \([0-9][0-9]*\) failed; .*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
	p=$((p + $(grep -c '^ok: ' "$log")))
	f=$((f + $(grep -c '^FAILED: ' "$log")))
	if [ "$status" != 0 ] && [ "$f" = 0 ]; then f=1; fi
	if [ "$status" = 0 ] && [ "$p" = 0 ]; then p=1; fi
	if [ "$took" -gt $((budget * 60 * 2)) ]; then
		echo "FAILED: $name took ${took}s, its budget is ${budget} minutes"
		f=$((f + 1))
	fi
	passed=$((passed + p)) failed=$((failed + f))
	summary+=$(printf '%-13s %5ss of %3s min  %4s passed %4s failed' "$name" "$took" "$budget" "$p" "$f")$'\n'
}

group build 15 cargo build --locked --all-targets
group format 1 cargo fmt --all --check
group dependencies 2 tests/deny.sh
group lint 15 cargo clippy --locked --all-targets -- -D warnings
# A fuzz target is a program with a main of its own, which `--bins` would start and which never ends.
group unit 5 cargo test --locked --workspace --exclude weft-fuzz --lib --bins
group scenarios 20 cargo test --locked -p weft-tests --test scenarios
group kubernetes 15 cargo test --locked -p weft-tests --test kubernetes
group pods 10 cargo test --locked -p weft-tests --test pods
group differential 10 cargo test --locked -p weft-tests --test differential
group fuzz 5 tests/fuzz/run.sh 20
group demo 5 env CHECK=1 cargo run --locked -q -p weft-tests --bin demo
echo
echo "$summary"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
