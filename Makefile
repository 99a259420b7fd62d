# Two commands matter: `make demo` and `make test`.

.PHONY: demo demo-kubernetes test install build check bench fuzz fields commands chart

# A mesh in network namespaces, explained as it runs. CHECK=1: once, every claim verified, exit status 0 or 1.
demo: install
	cargo build --locked
	cargo run --locked -q -p weft-tests --bin demo

# The same for pods of a Kubernetes node that is made for it, as root. On a cluster of your own: deploy/demo/kubernetes/demo.sh.
demo-kubernetes: install
	cargo build --locked
	cargo test --locked -p weft-tests --test pods the_demo -- --nocapture

# Everything: builds, lints, unit and property tests, scenarios, real clients, the same cases beside Envoy, a moment of fuzzing. What
# cannot run fails and says why.
test: install
	tests/run.sh

# What demo and tests need besides Rust, by package name (Debian).
install:
	tests/install.sh

# A release: stripped programs, debug symbols, completions and man pages in target/release-files.
build:
	deploy/build.sh

# Weft beside Envoy, HAProxy and nginx; QUICK=1 for a first look.
bench: install build
	cargo build --locked --profile dist -p weft-load
	tests/bench/install.sh
	python3 tests/bench/bench.py

# Each fuzz target for SECONDS_EACH, guided by coverage; `make test` runs each for a moment.
fuzz: install
	tests/fuzz/run.sh $${SECONDS_EACH:-600}

# Writes the generated pages of docs/ anew.
fields:
	cargo run --locked -q -p weft-tests --bin fields

# The chart's generated files, and the manifests for those without Helm.
chart:
	cargo build --locked
	WEFT_GOLDENS=1 cargo test --locked -p weft-tests --test kubernetes generated_files

commands:
	cargo build --locked
	cargo run --locked -q -p weft-tests --bin commands

# Before each commit: formatting, lints and unit tests, in two minutes when the build is warm.
check:
	cargo fmt --all --check
	cargo build --locked
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --workspace --exclude weft-fuzz --lib --bins
