#!/usr/bin/env bash
# Partyline against another libosip2 than the system's: builds the libraries for it and runs the parity and link tests with it.
#
#   OSIP_CFLAGS="-I/opt/osip-4.1/include" OSIP_LIBS="-L/opt/osip-4.1/lib -losip2 -losipparser2" scripts/osip-versions.sh
#
# Without OSIP_CFLAGS: that the crate builds where there are no osip2 headers. See docs/osip2.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
# A folder of its own: the flags are part of the build, and target/ would be built anew each time.
export CARGO_TARGET_DIR=$PWD/target/osip-versions
if [ -z "${OSIP_CFLAGS:-}" ]; then
    # The guard of osip2's header, so that what the header has is not there.
    OSIP_CFLAGS=-D_OSIP_H_ "$cargo" check --lib 2>&1 | tee target/osip-versions.log
    grep -q 'left out' target/osip-versions.log
    exit
fi
read -ra words <<<"$OSIP_LIBS"
for word in "${words[@]}"; do
    # The tests run what they link.
    case $word in -L*) OSIP_LIBS+=" -Wl,-rpath,${word#-L}" ;; esac
done
"$cargo" rustc --release --lib --crate-type cdylib --features interpose-libc
dir=$CARGO_TARGET_DIR/libraries
mkdir -p "$dir"
cp -f "$CARGO_TARGET_DIR/release/libpartyline.so" "$dir/libpartyline.so.0"
"$cargo" rustc --release --lib --crate-type staticlib
cp -f "$CARGO_TARGET_DIR/release/libpartyline.a" "$dir/"
unset CARGO_TARGET_DIR
# The test programs read the flags when they run; built with them, the whole crate would be built again.
flags=$OSIP_CFLAGS
unset OSIP_CFLAGS
for test in osip_parity osip_link; do
    program=$("$cargo" test --test $test --no-run 2>&1 | sed -n "s/.*(\(.*deps\/$test-.*\))/\1/p")
    OSIP_CFLAGS=$flags OSIP_LIBS=$OSIP_LIBS OSIP_LIBRARY_DIR=$dir "$program"
done
