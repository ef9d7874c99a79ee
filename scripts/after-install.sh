#!/usr/bin/env bash
# Makes the linker's cache know the library where it can, and says what a program needs where it cannot: scripts/after-install.sh LIBDIR
set -euo pipefail
libdir=$1
export PATH="$PATH:/sbin:/usr/sbin"
[ "$(id -u)" != 0 ] || ldconfig
if ! ldconfig -p | grep -qF " $libdir/libpartyline.so.0"; then
  echo "The dynamic linker does not look in $libdir: link programs with -Wl,-rpath,$libdir, or run them with LD_LIBRARY_PATH=$libdir."
fi
if ! pkg-config --exists partyline; then echo "pkg-config needs PKG_CONFIG_PATH=$libdir/pkgconfig."; fi
