#!/usr/bin/env bash
# Builds the library for x86_64-pc-windows-gnu and runs its tests under Wine, then the C tests, compiled by mingw, against the
# dll. docs/windows.md says what that proves and which tests are left out. Everything lies in target/windows and target/wine.
#   scripts/test-windows.sh              all of it
#   scripts/test-windows.sh quick        what depends on the system: the last step of `make test`
#   scripts/test-windows.sh clippy       lints of the Windows code alone (package rust-web-clippy)
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
form=${1:-full}
skipped() {
  printf '%s\n' "****" "**** SKIPPED: nothing was built or tested for Windows: $1" "****"
  exit 0
}
command -v apt-get >/dev/null || skipped "this is not Debian (no apt-get); needed are Debian's rustc-web, mingw-w64 and Wine"
began=$SECONDS
said=$(CARGO=$cargo scripts/deps.sh windows 2>&1) || skipped "the packages cannot be installed:"$'\n'"$said"
[ -z "$said" ] || echo "$said"
echo "windows: packages in $((SECONDS - began)) s"

# The compiler and the source of std have to be of one version: Debian's rustc-web and rust-web-src are.
export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1
source=$($RUSTC --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock
[ -e "$source" ] || skipped "$source is missing: /usr/bin/rustc is not the one of rustc-web"
target=x86_64-pc-windows-gnu
export CARGO_TARGET_DIR=target/windows # its own: two versions of the compiler must not share one
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=/usr/lib/wine/wine64
export CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc AR_x86_64_pc_windows_gnu=x86_64-w64-mingw32-ar
export WINEPREFIX=$PWD/target/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
unset RUSTFLAGS RUSTC_WRAPPER DISPLAY
# Nearly all of the time is compiling, of std and every dependency too.
build=(-Zbuild-std=std,panic_abort --target "$target"
  --config profile.dev.opt-level=0 --config 'profile.dev.package."*".opt-level=0'
  --config profile.dev.debug=0 --config profile.dev.incremental=false)

quick=(net_udp net_tcp net_reactor net_windows sched_pool sched_timers registrar_sqlite)
rest=(registrar_memory net_framer fuzz_framer sched_strand sched_watchdog registrar_rules registrar_auth registrar_model registrar_fuzz
  registrar_hostile registrar_extensions sip_alloc sip_forms sip_fuzz sip_message sip_torture pool_model observe_log)
case $form in
  quick) tests=("${quick[@]}") ;;
  full | clippy) tests=("${quick[@]}" "${rest[@]}") ;;
  *) echo "$0: $form: not a form of it" >&2; exit 2 ;;
esac

if [ "$form" = clippy ]; then
  # clippy 1.96 says the second of what is const already, where the target has thread locals of another kind.
  and=__CLIPPY_HACKERY__
  RUSTC_WORKSPACE_WRAPPER=/usr/bin/clippy-driver \
    CLIPPY_ARGS="-D${and}warnings${and}-A${and}clippy::missing_const_for_thread_local${and}" \
    "$cargo" check --quiet "${build[@]}" --lib "${tests[@]/#/--test=}"
  exit
fi

began=$SECONDS
"$cargo" test --quiet --no-run "${build[@]}" --lib "${tests[@]/#/--test=}"
echo "windows: built in $((SECONDS - began)) s"

# The prefix once; std needs the shim before the first program runs.
began=$SECONDS
system=$WINEPREFIX/drive_c/windows/system32
wine_ends() { /usr/lib/wine/wineserver64 -k >/dev/null 2>&1 || true; } # of this prefix alone
wine_ends
trap wine_ends EXIT
[ -e "$system/.partyline" ] || rm -rf "$WINEPREFIX"
mkdir -p "$WINEPREFIX"
# Its server outlives each program: one that starts while the server is on its way out would lose it. A program that was cut off,
# and what Wine starts itself, end with the script.
/usr/lib/wine/wineserver64 -p60 >/dev/null 2>&1
if [ ! -e "$system/.partyline" ]; then
  # It says much about what is not needed here: windows, 32 bits.
  timeout 300 /usr/lib/wine/wine64 wineboot -i >target/wine/boot.log 2>&1 || { cat target/wine/boot.log; exit 1; }
  touch "$system/.partyline"
fi
x86_64-w64-mingw32-gcc -O1 -shared -o "$system/bcryptprimitives.dll" c-harness/windows/prng.c -ladvapi32

timeout 900 "$cargo" test --quiet --no-fail-fast "${build[@]}" --lib "${tests[@]/#/--test=}"
if [ "$form" = full ]; then
  # Once more over mio's readiness instead of the completion port. docs/windows.md says what is not settled there.
  PARTYLINE_TEST_BACKEND=readiness timeout 300 "$cargo" test --quiet --no-fail-fast "${build[@]}" \
    --test=net_udp --test=net_tcp --test=net_reactor
  "$cargo" test --quiet "${build[@]}" --test=net_windows -- --ignored --nocapture
fi
echo "windows: Rust tests run in $((SECONDS - began)) s"

began=$SECONDS
# Built with the tests; `cargo build --lib` would build all dependencies once more, with other features.
dll=target/windows/$target/debug/deps
out=target/windows/harness
mkdir -p "$out"
cp -f "$dll/partyline.dll" "$out/"
for name in api_misuse allocators pool_api limit_flow plugins events overload registrar_flow stream_flow watch; do
  # Static: but for the dll itself nothing has to lie beside the program.
  x86_64-w64-mingw32-gcc -std=gnu11 -O1 -Wall -Wextra -Werror -Iinclude -o "$out/$name.exe" "c-harness/tests/$name.c" \
    "$dll/libpartyline.dll.a" -static -lpthread -lws2_32
done
run() {
  local code=0
  (cd "$out" && timeout 120 /usr/lib/wine/wine64 "$@") || code=$?
  [ $code = 0 ] || { echo "windows: C test $* ended with $code" >&2; exit 1; }
}
run api_misuse.exe
run allocators.exe
run pool_api.exe
for step in 0 3 7; do run limit_flow.exe $step; done
run plugins.exe
run events.exe
run overload.exe
run registrar_flow.exe memory: memory
run registrar_flow.exe memory: memory tcp
for mode in write_through write_back; do
  rm -f "$out"/flow.db*
  run registrar_flow.exe sqlite:flow.db "$mode"
done
run stream_flow.exe
run watch.exe
echo "windows: C tests built and run in $((SECONDS - began)) s"
echo "windows: builds for Windows and passes under Wine"
