#!/usr/bin/env bash
# The library, its tests and the C programs under AddressSanitizer and ThreadSanitizer: scripts/sanitize.sh [address] [thread]
# First the errors that are planted: a sanitizer that does not report each of them ends the run. Needs a nightly toolchain of
# rustup's (no other has the sanitizers); without one it says SKIPPED and ends with code 77. docs/sanitizers.md.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
cargo=${CARGO:-cargo}
out=$root/target/sanitize
unset CARGO_TARGET_DIR RUSTFLAGS
skip() {
  echo "make sanitize: SKIPPED, nothing was checked: $*" >&2
  exit 77
}
fail() {
  echo "make sanitize: FAILED: $*" >&2
  exit 1
}
"$cargo" +nightly --version >/dev/null 2>&1 || skip "no nightly toolchain ($cargo +nightly; rustup toolchain install nightly)"
host=$("$cargo" +nightly --version --verbose | sed -n 's/^host: //p')
sysroot=$(RUSTUP_TOOLCHAIN=nightly rustc --print sysroot)
runtimes=$sysroot/lib/rustlib/$host/lib
[ -e /usr/include/osip2/osip.h ] || skip "no osip2 headers (libosip2-dev)"
# Names in reports, and the suppressions, need one of the two.
symbolizer=$(command -v llvm-symbolizer || command -v addr2line) || skip "neither llvm-symbolizer nor addr2line"
common=external_symbolizer_path=$symbolizer:allow_addr2line=1
mkdir -p "$out"

# What runs under both: Rust tests by program (the library's own, then those below tests/), C programs with their arguments.
rust_lib=(--lib)
rust_address=(pool_model pool_process net_framer net_reactor net_tcp net_udp registrar_memory sip_torture)
rust_thread=(pool_model sched_pool sched_strand sched_timers sched_watchdog net_reactor net_tcp net_udp registrar_memory registrar_sqlite)

# Of a sanitizer: its flags, its runtime, its name in reports.
setup() {
  which=$1
  target=$out/$which
  libs=$target/$host/debug/deps
  case $which in
    address)
      flags="-Zsanitizer=address"; runtime=$runtimes/librustc-nightly_rt.asan.a; report=AddressSanitizer
      tests=("${rust_address[@]}")
      export ASAN_OPTIONS=$common:detect_leaks=1:abort_on_error=0:exitcode=66:handle_abort=0:handle_segv=0
      export LSAN_OPTIONS=suppressions=$root/scripts/lsan.supp:print_suppressions=0 ;;
    thread)
      flags="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"; runtime=$runtimes/librustc-nightly_rt.tsan.a; report=ThreadSanitizer
      tests=("${rust_thread[@]}")
      export TSAN_OPTIONS=$common:suppressions=$root/scripts/tsan.supp:history_size=4:print_suppressions=0 ;;
  esac
  [ -e "$runtime" ] || skip "the nightly toolchain has no $(basename "$runtime")"
}

sanitized_cargo() {
  local variable=CARGO_TARGET_${host^^}
  variable=${variable//-/_}_RUSTFLAGS
  env "$variable=$flags" PARTYLINE_SANITIZE="$which" CARGO_TARGET_DIR="$target" "$cargo" +nightly "$@" --target "$host"
}

# A C program, itself instrumented, with the archive in front of the distribution's osip2.
program() { # program NAME SOURCE
  mkdir -p "$target/c"
  gcc -std=gnu11 -O1 -g -w -fno-omit-frame-pointer -fsanitize="$which" -DSOAK_SANITIZED -Iinclude -c -o "$target/c/$1.o" "$2"
  gcc -rdynamic -o "$target/c/$1" "$target/c/$1.o" -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive \
    -Wl,-u,partyline_constructor "$libs/libpartyline.a" -Wl,--no-as-needed -losip2 -losipparser2 -Wl,--as-needed \
    -lstdc++ -lgcc_s -lrt -ldl -lm -lpthread
}

# Has to fail, with all of the words in what it says.
reported() { # reported NAME COMMAND... -- WORD...
  local name=$1 log=$out/$which-planted-$1.log command=() word; shift
  while [ "$1" != -- ]; do command+=("$1"); shift; done
  shift
  if "${command[@]}" >"$log" 2>&1 </dev/null; then fail "$which: the planted error '$name' went unnoticed ($log)"; fi
  for word in "$@"; do
    grep -qF -- "$word" "$log" || fail "$which: the report of the planted error '$name' does not say '$word' ($log)"
  done
  planted=$((planted + 1))
}

clean() { # clean NAME COMMAND...
  local name=$1 log=$out/$which-$1.log code=0; shift
  timeout 600 "$@" >"$log" 2>&1 </dev/null || code=$?
  if [ $code != 0 ] || grep -qE "$report|LeakSanitizer" "$log"; then
    grep -E '^SUMMARY|panicked|FAILED|not true' "$log" | cut -c1-300 | sort | uniq -c | head -20 >&2 || true
    broken+=("$name, code $code ($log)")
  fi
}

run_planted() {
  planted=0
  local one
  case $which in
    address)
      reported rust env PARTYLINE_POOL=libc "$lib_test" --exact pool::planted::overflow --ignored -- "heap-buffer-overflow" "pool::planted::overflow"
      program planted c-harness/sanitize/planted.c
      local run=(env PARTYLINE_POOL=libc "$target/c/planted")
      reported short_fifo "${run[@]}" short_fifo -- heap-buffer-overflow partyline_fifo_setup
      reported short_stats "${run[@]}" short_stats -- heap-buffer-overflow partyline_pool_stats_get
      reported past_a_block "${run[@]}" past_a_block -- heap-buffer-overflow past_a_block
      reported used_after_free "${run[@]}" used_after_free -- heap-use-after-free used_after_free
      reported lost "${run[@]}" lost -- "detected memory leaks" osip_message_init ;;
    thread)
      reported rust "$lib_test" --exact pool::planted::race --ignored -- "data race" "pool::planted::race"
      reported rust_block "$lib_test" --exact pool::planted::race_in_a_block --ignored -- "data race" "pool::planted::race_in_a_block"
      program planted c-harness/sanitize/planted.c
      local run=("$target/c/planted")
      reported race_in_c "${run[@]}" race_in_c_of_the_library -- "data race" partyline_fifo_setup
      reported race_in_rust "${run[@]}" race_in_rust_of_the_library -- "data race" partyline_pool_stats_get
      reported race_in_the_program "${run[@]}" race_in_the_program -- "data race" "in count" ;;
  esac
  # And a run without an error is silent.
  clean planted-nothing "${run[@]}" nothing
}

run_rust() {
  local name file said
  passed=0
  for name in lib "${tests[@]}"; do
    file=$lib_test
    [ "$name" = lib ] || file=$(test_program "$name")
    # Without the harness's capture of output, which is guarded by a lock of std's.
    # In the pool's own modes its blocks have no red zones: in libc mode AddressSanitizer sees each.
    case $which,$name in
      address,lib) clean "rust-$name-libc" env PARTYLINE_POOL=libc "$file" --test-threads=2 ;;
    esac
    clean "rust-$name" "$file" --test-threads=2 --nocapture ${skips[$which-$name]-}
    said=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' "$out/$which-rust-$name.log" | tail -1)
    [ "${said:-0}" -gt 0 ] || broken+=("rust-$name: no test ran")
    passed=$((passed + ${said:-0}))
  done
}

test_program() { grep -oE "\(target/[^)]*/deps/$1-[0-9a-f]+\)" "$out/$which-build.log" | tr -d '()' | tail -1; }

# Tests that cannot hold under a sanitizer, each with its reason in docs/sanitizers.md.
declare -A skips=(
  [address-pool_process]="--skip with_little_address_space --skip goes_back_after_a_peak"
)

run_c() {
  local pool=()
  [ "$which" = thread ] || pool=(PARTYLINE_POOL=libc)
  ran=0
  c() { # c NAME SOURCE ARGUMENTS...
    local name=$1 source=$2; shift 2
    [ -e "$target/c/$name.o" ] && [ "$target/c/$name" -nt "$libs/libpartyline.a" ] && [ "$target/c/$name" -nt "$source" ] || program "$name" "$source"
    local run
    run=c-$name${1:+-$(tr -c 'a-z0-9\n' - <<<"$*")}
    # A stack that goes through libosip2 is whole only when it is unwound, not when frame pointers are followed.
    clean "$run" env ASAN_OPTIONS="${ASAN_OPTIONS-}:fast_unwind_on_malloc=0" PARTYLINE_REPORT=1 "${pool[@]}" "$target/c/$name" "$@"
    # What runs transactions has to run them in the library, not in libosip2.
    case $name in
      threads | flows | random) grep -q 'partyline: engine: nist created [1-9]' "$out/$which-$run.log" || broken+=("$run: the engine was not in use") ;;
    esac
    ran=$((ran + 1))
  }
  rm -f "$out"/flow.db*
  c plugins c-harness/tests/plugins.c
  c events c-harness/tests/events.c
  c stream_flow c-harness/tests/stream_flow.c
  c registrar_flow c-harness/tests/registrar_flow.c memory: memory
  c registrar_flow c-harness/tests/registrar_flow.c memory: memory tcp
  c registrar_flow c-harness/tests/registrar_flow.c "sqlite:$out/flow.db" write_through
  rm -f "$out"/flow.db*
  c registrar_flow c-harness/tests/registrar_flow.c "sqlite:$out/flow.db" write_back
  rm -f "$out"/flow.db*
  c threads c-harness/parity/threads.c 500
  c fifo c-harness/parity/fifo.c
  if [ "$which" = address ]; then
    c api_misuse c-harness/tests/api_misuse.c
    c flows c-harness/parity/flows.c
    c random c-harness/parity/random.c 1 200 200
  else
    c soak_pool c-harness/tests/soak_pool.c 10 4 7
  fi
}

# The program of partysip's shape, relinked, all of it instrumented but libosip2: its loops, hooks beside them, and libpartyline's
# plugins for it. The archive of libpartyline stands in the program, so users are libppl's own, which have no lock: rgstrar stays serial.
build_partysip() {
  local out=$target/partysip flags="-std=gnu11 -O1 -g -w -fno-omit-frame-pointer -fsanitize=$which -Iinclude" file
  mkdir -p "$out/objects" "$out/stock" "$out/ours"
  for file in src/partysip/glue/*.c; do gcc $flags -c -o "$out/objects/glue_$(basename "$file" .c).o" "$file"; done
  for file in c-harness/partysip-host/*.c c-harness/partysip-host/ppl/*.c; do
    gcc $flags -c -o "$out/objects/host_$(basename "$file" .c).o" "$file"
  done
  # Linked without the flag: the runtime is the program's.
  plugin() { gcc $flags -fPIC -c -o "$out/objects/plugin.o" "$1" && gcc -shared -o "$2" "$out/objects/plugin.o"; }
  for file in c-harness/partysip-host/plugins/*.c; do
    plugin "$file" "$out/stock/libpsp_$(basename "$file" .c).so"
    ln -sf ../stock/"libpsp_$(basename "$file" .c).so" "$out/ours/"
  done
  for file in udp mysqlreg; do
    rm -f "$out/ours/libpsp_$file.so"
    plugin "c-harness/plugins/$file.c" "$out/ours/libpsp_$file.so"
  done
  gcc -rdynamic -o "$out/host" -Wl,--allow-multiple-definition "$out"/objects/glue_*.o "$out"/objects/host_*.o \
    -Wl,--whole-archive "$runtime" "$libs/libpartyline.a" -Wl,--no-whole-archive \
    -Wl,--no-as-needed -losip2 -losipparser2 -Wl,--as-needed -lstdc++ -lgcc_s -lrt -ldl -lm -lpthread
  cc -O2 -o "$out/load" c-harness/bench/osip_load.c
}

serve_partysip() { # serve_partysip PLUGINS FOLDER [NAME=VALUE...]: 600 REGISTER in 3 s, then its end
  local plugins=$1 folder=$target/partysip/$2 port=24797 pid said; shift 2
  printf 'serverport_udp = %s\nserverip = 127.0.0.1\nplugins = %s\n' $port "$plugins" >"$out/partysip.conf"
  coproc HOST { exec env PARTYLINE_REPORT=1 SLOW_MS=5 TRACE_FILE="$out/partysip.trace" "$@" "$target/partysip/host" -f "$out/partysip.conf" -d "$folder"; }
  pid=$HOST_PID
  read -r said <&"${HOST[0]}" || return 1
  echo "$said"
  "$target/partysip/load" $port 200 3 1000000 50 || true
  kill "$pid"
  wait "$pid"
}

run_partysip() {
  build_partysip
  local all="udp, slow, syntax, rgstrar, ls_localdb, trace" beside=PARTYLINE_PLUGINS=slow=parallel,syntax=parallel,trace=keyed:callid folder log
  reported partysip_hook serve_partysip "$all" stock "$beside" SLOW_RACE=1 -- "data race" cb_slow
  for folder in stock ours; do
    log=$out/$which-partysip-$folder.log
    served "partysip-$folder" "$all" "$folder" "$beside"
    grep -q 'hooks_beside [1-9]' "$log" && grep -q 'taken over [1-9]' "$log" && grep -q 'sent 600 answered 600' "$log" ||
      broken+=("partysip-$folder: no hook ran beside, nothing was taken over, or an answer is missing ($log)")
  done
  served partysip-first "udp, mysqlreg" ours
  grep -q 'sent 600 answered 600' "$out/$which-partysip-first.log" || broken+=("partysip-first: an answer is missing")
}

served() { # served NAME PLUGINS FOLDER [NAME=VALUE...]
  local name=$1 log=$out/$which-$1.log code=0; shift
  serve_partysip "$@" >"$log" 2>&1 </dev/null || code=$?
  if [ $code != 0 ] || grep -qE "$report" "$log"; then
    grep -E '^SUMMARY' "$log" | cut -c1-300 | sort | uniq -c | head -20 >&2 || true
    broken+=("$name, code $code ($log)")
  fi
  ran=$((ran + 1))
}

[ $# -gt 0 ] || set -- address thread
for which in "$@"; do
  case $which in address | thread) ;; *) echo "sanitize.sh: '$which' is neither address nor thread" >&2; exit 2 ;; esac
  began=$SECONDS broken=()
  setup "$which"
  echo "== $which: building"
  select=("${tests[@]/#/--test=}")
  sanitized_cargo test --no-run --lib "${select[@]}" >"$out/$which-build.log" 2>&1 || { tail -40 "$out/$which-build.log" >&2; fail "$which: the build"; }
  lib_test=$(grep -oE '\(target/[^)]*/deps/partyline-[0-9a-f]+\)' "$out/$which-build.log" | tr -d '()' | head -1)
  [ -x "$lib_test" ] || fail "$which: cargo named no test program of the library"
  echo "== $which: planted errors"
  run_planted
  echo "== $which: Rust tests"
  run_rust
  echo "== $which: C programs"
  run_c
  if [ "$which" = thread ]; then
    echo "== $which: partysip's shape, relinked"
    run_partysip
  fi
  [ ${#broken[@]} = 0 ] || { printf '  %s\n' "${broken[@]}" >&2; fail "$which: ${#broken[@]} not clean"; }
  echo "sanitize: $which: $planted planted errors reported; $passed Rust tests and $ran runs of C programs clean; $((SECONDS - began)) s"
done
