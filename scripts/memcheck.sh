#!/usr/bin/env bash
# valgrind's memcheck over the parity programs with the library preloaded, the pool in libc mode so that it sees each block:
# `make memcheck`. First the errors that are planted, which it has to report. Only blocks that nothing points at count as
# leaks: what the engine keeps for the life of the process is reached by pointers into its middle.
set -euo pipefail
cd "$(dirname "$0")/.."
library=$PWD/target/lib/libpartyline.so.0
out=target/memcheck
mkdir -p "$out"
command -v valgrind >/dev/null || { echo "make memcheck: SKIPPED, nothing was checked: no valgrind" >&2; exit 77; }
[ -e /usr/include/osip2/osip.h ] || { echo "make memcheck: SKIPPED, nothing was checked: no osip2 headers" >&2; exit 77; }
build() { cc -O1 -g -std=gnu11 -w -o "$out/$(basename "$1" .c)" "$1" -losip2 -losipparser2 -lpthread; }
check() { # check COMMAND...: 9 when there is something to report
  # Not into timeout and valgrind's launcher: only the program is looked at.
  timeout 900 valgrind -q --suppressions=scripts/memcheck.supp --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
    --trace-children=yes env LD_PRELOAD="$library" PARTYLINE_POOL=libc PARTYLINE_REPORT=1 "$@"
}
build c-harness/sanitize/memcheck.c
for plant in overflow:"Invalid write" leak:"definitely lost" after_free:"Invalid read"; do
  code=0
  check "$out/memcheck" "${plant%%:*}" >"$out/planted.log" 2>&1 || code=$?
  if [ $code != 9 ] || ! grep -q "${plant#*:}" "$out/planted.log"; then
    cat "$out/planted.log" >&2
    echo "make memcheck: FAILED: the planted error '${plant%%:*}' went unnoticed" >&2
    exit 1
  fi
done
echo "planted errors reported: overflow, leak, after_free"
runs=0
memcheck() { # memcheck SOURCE ARGUMENTS...
  local name source=$1; shift
  name=$(basename "$source" .c)
  [ "$out/$name" -nt "$source" ] || build "$source"
  if ! check "$out/$name" "$@" >"$out/$name.out" 2>"$out/$name.log"; then
    tail -60 "$out/$name.log" >&2
    echo "make memcheck: FAILED: $name $*" >&2
    exit 1
  fi
  # A run without the library proves nothing.
  grep -q "partyline: pool: mode Libc" "$out/$name.log" || { echo "make memcheck: FAILED: $name ran without the library" >&2; exit 1; }
  echo "clean: $name $*"
  runs=$((runs + 1))
}
memcheck c-harness/sanitize/memcheck.c nothing
memcheck c-harness/parity/flows.c
memcheck c-harness/parity/random.c 1 "${MEMCHECK_SEEDS:-50}" 200
memcheck c-harness/parity/random.c 100001 "${MEMCHECK_SEEDS:-50}" 200
memcheck c-harness/parity/fifo.c
memcheck c-harness/parity/threads.c 200
echo "memcheck: ok: $runs runs clean"
