#!/usr/bin/env bash
# libFuzzer over the library's parsers, FUZZ_SECONDS (default 60) for each target: scripts/fuzz.sh [TARGET...]
# The corpus is that of the stable drivers below tests/, which `make test` runs; what libFuzzer adds stays in fuzz/corpus. An
# input that fails lies in fuzz/artifacts; as a regression test it belongs into tests/corpus. Needs a nightly toolchain of
# rustup's and installs cargo-fuzz into target/tools; without nightly it says SKIPPED and ends with code 77.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
unset CARGO_TARGET_DIR
"$cargo" +nightly --version >/dev/null 2>&1 || { echo "make fuzz: SKIPPED, nothing was run: no nightly toolchain" >&2; exit 77; }
tool=$PWD/target/tools/bin/cargo-fuzz
# In a target of its own, so that nothing of the library's build is disturbed.
[ -x "$tool" ] || CARGO_TARGET_DIR=target/tools/build "$cargo" install cargo-fuzz --locked --root target/tools
declare -A seeds=([message]=sip [framer]=framer [register]=register [auth]=auth [tls]=tls)
[ $# -gt 0 ] || set -- message framer register auth tls
seconds=${FUZZ_SECONDS:-60}
for target in "$@"; do
  [ -n "${seeds[$target]-}" ] || { echo "fuzz.sh: no target '$target' (message, framer, register, auth, tls)" >&2; exit 2; }
  own=fuzz/corpus/$target
  mkdir -p "$own" target/fuzz
  log=target/fuzz/$target.log
  # The first directory is the one that is written to.
  if ! RUSTUP_TOOLCHAIN=nightly PATH="$(dirname "$tool"):$PATH" "$cargo" fuzz run "$target" "$own" "tests/corpus/${seeds[$target]}" -- \
    -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20 -max_len=20000 >"$log" 2>&1; then
    tail -40 "$log" >&2
    echo "make fuzz: FAILED: target $target ($log; the input is in fuzz/artifacts/$target)" >&2
    exit 1
  fi
  runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log" | tail -1)
  [ "${runs:-0}" -gt 100 ] || { tail -20 "$log" >&2; echo "make fuzz: FAILED: target $target ran ${runs:-0} inputs" >&2; exit 1; }
  echo "figure fuzz_$target $runs inputs"
done
