#!/bin/bash
# A RUSTC_WORKSPACE_WRAPPER: counts the edges of Weft's own crates, as guidance for libFuzzer (as cargo-fuzz
# does, but on stable Rust, and without another build of the dependencies).
case " $* " in
*" build_script_build "* | *" --crate-type proc-macro "* | *" -vV "* | *" --print"*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
