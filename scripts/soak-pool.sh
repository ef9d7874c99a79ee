#!/usr/bin/env bash
# The pool under everything at once for SOAK_SECONDS (default 600) with SOAK_THREADS (default 8): `make soak-pool`.
# First, for a few seconds each, with an error that is planted and has to be found.
set -euo pipefail
cd "$(dirname "$0")/.."
program=target/harness/tests/soak_pool
log=target/soak-pool-planted.log
for plant in content leak figures; do
  if SOAK_PLANT=$plant timeout 120 "$program" 3 4 >"$log" 2>&1; then
    echo "make soak-pool: FAILED: the planted error '$plant' went unnoticed" >&2
    exit 1
  fi
  grep -q '^soak_pool: ' "$log" || { cat "$log" >&2; echo "make soak-pool: FAILED: '$plant' ended without a word" >&2; exit 1; }
done
echo "planted errors found: content, leak, figures"
seconds=${SOAK_SECONDS:-600}
for mode in on checked; do
  # The checks cost little and change every path: a tenth of the time is theirs.
  [ "$mode" = on ] && share=$((seconds * 9 / 10)) || share=$((seconds / 10 + 1))
  echo "PARTYLINE_POOL=$mode, $share s"
  PARTYLINE_POOL=$mode timeout $((share + 300)) "$program" "$share" "${SOAK_THREADS:-8}" "${SOAK_SEED:-$$}" | sed "s/^figure soakpool_/&${mode}_/"
done
