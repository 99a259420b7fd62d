#!/bin/bash
# A RUSTC_WORKSPACE_WRAPPER: counts the edges that our own crates run through, for libFuzzer to be guided by (what cargo-fuzz
# does, for stable Rust, and with the dependencies as they are built already).
case " $* " in
*" build_script_build "* | *" --crate-type proc-macro "* | *" -vV "* | *" --print"*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
