#!/usr/bin/env bash
# Installs the Debian packages that are missing, after listing them: scripts/deps.sh build [test]
# As root directly, else through `sudo -n`; where neither works it prints the one apt line and stops.
set -euo pipefail
want=()
need() { # need PACKAGE COMMAND-OR-FILE
  case $2 in
    /*) [ -e "$2" ] || want+=("$1") ;;
    *) PATH="$PATH:/usr/sbin" command -v "$2" >/dev/null || want+=("$1") ;;
  esac
}
arch=$(gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)
for set in "$@"; do
  case $set in
    build)
      need gcc gcc; need libc6-dev /usr/include/stdio.h; need make make; need pkg-config pkg-config
      need libosip2-dev /usr/include/osip2/osip.h
      need libsqlite3-dev /usr/include/sqlite3.h; need libmariadb-dev /usr/include/mariadb/mysql.h
      if ! command -v cargo >/dev/null; then want+=(rustc-web cargo-web); fi ;;
    test)
      need sip-tester sipp; need mariadb-server-core mariadbd; need mariadb-client-core mariadb
      need python3 python3; need sqlite3 sqlite3; need valgrind valgrind; need binutils objdump; need sipsak sipsak
      need baresip-core baresip; need linphone-cli linphonec ;;
    *) echo "deps.sh: unknown set '$set' (build, test)" >&2; exit 2 ;;
  esac
done
if [ ${#want[@]} -gt 0 ]; then
  echo "Missing Debian packages, to be installed now: ${want[*]}"
  line="apt-get install -y --no-install-recommends ${want[*]}"
  run=()
  if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then run=(sudo -n); else
      echo "Neither root nor sudo without a password. Run this, then the same make command again:" >&2
      echo "  sudo $line" >&2
      exit 1
    fi
  fi
  export DEBIAN_FRONTEND=noninteractive
  "${run[@]}" apt-get update -qq
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive $line >/dev/null
fi
version=$(cargo --version | awk '{print $2}')
if [ "$(printf '1.85\n%s\n' "$version" | sort -V | head -1)" != 1.85 ]; then
  echo "cargo $version is too old: Rust 1.85 or later is needed (Debian 12: apt-get install rustc-web cargo-web, or rustup)" >&2
  exit 1
fi
