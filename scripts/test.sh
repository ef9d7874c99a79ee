#!/usr/bin/env bash
# Everything that `make test` does, in the order of what breaks first. Ends with what each step took; docs/ci.md says how the
# 20 minutes are split.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
make=${MAKE:-make}
mkdir -p target
spent=""
# Seconds on the clock beside those of all cores: the first alone says little on a machine that is shared.
cpu=0
read_cpu() { # into $cpu; not in a subshell, whose own children `times` would count
  times >target/times
  cpu=$(awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, t, /[ms]/); sum += t[1] * 60 + t[2] } printf "%d", sum }' target/times)
}
step() { # step NAME COMMAND...
  local name=$1 began=$SECONDS before; shift
  read_cpu; before=$cpu
  printf '== %s\n' "$name"
  "$@"
  read_cpu
  spent+=$(printf '%-24s %5d s %5d s of CPU' "$name" $((SECONDS - began)) $((cpu - before)))$'\n'
}
optional() { # optional SUBCOMMAND ARGUMENTS...: Debian's rustc-web has neither rustfmt nor clippy
  if "$cargo" "$1" --version >/dev/null 2>&1; then "$cargo" "$@"; else echo "SKIPPED: this Rust toolchain has no cargo $1"; fi
}
# What is said at the end is said of a failure as well.
trap 'code=$?; read_cpu; printf "%s%-24s %5d s %5d s of CPU\n" "$spent" "all" "$SECONDS" "$cpu"; [ $code = 0 ] || echo "make test: FAILED" >&2' EXIT

windows() { # last, and not where it could take what is left of CI's 1200 s
  if [ "$SECONDS" -lt 640 ]; then scripts/test-windows.sh quick; else
    printf '%s\n' "****" "**** SKIPPED: Windows: what comes before took $SECONDS s of 1200; run make test-windows" "****"
  fi
}

step "packages" "$make" --no-print-directory deps-test
step "format" optional fmt --check
step "library, C programs" "$make" --no-print-directory lib harness
step "lints" optional clippy --quiet --all-targets -- -D warnings
step "tests, compiled" "$cargo" test --quiet --no-run
step "tests, run" "$cargo" test --no-fail-fast
step "Windows under Wine" windows
