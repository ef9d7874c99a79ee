#!/usr/bin/env bash
# Every test that belongs into `make test`, in the order of what breaks first. docs/ci.md says how the 20 minutes are split.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }
step "format and lints"
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; else echo "SKIPPED: no rustfmt in this toolchain"; fi
if cargo clippy --version >/dev/null 2>&1; then cargo clippy --quiet --all-targets -- -D warnings; else echo "SKIPPED: no clippy in this toolchain"; fi
step "cargo test"
cargo test --no-fail-fast
step "done"
