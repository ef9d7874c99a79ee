#!/usr/bin/env bash
# Installs the Debian packages that are missing, after listing them: scripts/deps.sh build|demo|mysql|test|bench...
# As root directly, else through `sudo -n`; where neither works it prints the one apt line and stops with code 1.
set -euo pipefail
oldest=1.85
cargo=${CARGO:-cargo}
# rustup's, where the shell that called did not read its profile (root through su, cron, CI). The Makefile does the same.
PATH=$PATH:${HOME:-/root}/.cargo/bin
want=()
need() { # need PACKAGE COMMAND-OR-FILE
  case " ${want[*]} " in *" $1 "*) return ;; esac
  case $2 in
    /*) [ -e "$2" ] || want+=("$1") ;;
    *) PATH="$PATH:/usr/sbin" command -v "$2" >/dev/null || want+=("$1") ;;
  esac
}
check_cargo() {
  local said version
  if ! said=$("$cargo" --version 2>&1); then
    echo "$(command -v "$cargo") does not run: ${said%%$'\n'*}" >&2
    exit 1
  fi
  version=$(awk '{print $2}' <<<"$said")
  if [ "$(printf '%s\n' "$oldest" "$version" | sort -V | head -1)" != "$oldest" ]; then
    echo "$(command -v "$cargo") is $version, too old: Rust $oldest or later is needed." >&2
    echo "Debian 12 has it: apt-get install rustc-web cargo-web (in place of rustc and cargo); or use rustup." >&2
    exit 1
  fi
}
[ $# -gt 0 ] || set -- build
# Before anything is installed: what is too old stays so.
if command -v "$cargo" >/dev/null; then check_cargo; fi
for set in "$@"; do
  case $set in
    build)
      need gcc cc; need libc6-dev /usr/include/stdio.h; need binutils ld; need make make; need pkg-config pkg-config
      need ca-certificates /etc/ssl/certs/ca-certificates.crt # crates.io is read over TLS
      need libosip2-dev /usr/include/osip2/osip.h
      need libsqlite3-dev /usr/include/sqlite3.h; need libmariadb-dev /usr/include/mariadb/mysql.h
      if ! command -v "$cargo" >/dev/null; then want+=(rustc-web cargo-web); fi ;;
    demo) need sip-tester sipp; need python3 python3 ;;
    mysql) need mariadb-server-core mariadbd; need mariadb-client-core mariadb ;;
    test) need sqlite3 sqlite3; need valgrind valgrind; need binutils objdump; need sipsak sipsak
      need baresip-core baresip; need linphone-cli linphonec; need strace strace; need openssl openssl ;;
    bench) need python3 python3; need util-linux taskset; need kamailio kamailio
      need kamailio-mysql-modules "$(compgen -G '/usr/lib/*/kamailio/modules/db_mysql.so' || echo /none)" ;;
    # Compiler and source of std of one version; another cargo than Debian's may drive them.
    windows) need rustc-web /usr/share/doc/rustc-web; need rust-web-src /usr/share/doc/rust-web-src
      need gcc-mingw-w64-x86-64-posix x86_64-w64-mingw32-gcc; need wine64 /usr/lib/wine/wine64 ;;
    cluster) need mariadb-server /usr/bin/wsrep_sst_rsync; need galera-4 /usr/lib/galera/libgalera_smm.so; need rsync rsync ;;
    *) echo "deps.sh: unknown set '$set' (build, demo, mysql, test, bench, cluster, windows)" >&2; exit 2 ;;
  esac
done
if [ ${#want[@]} -gt 0 ]; then
  echo "Missing Debian packages: ${want[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "This is not Debian (no apt-get): install what corresponds to them by hand." >&2
    exit 1
  fi
  # At runlevel 1 no package starts the server that it brings.
  run=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1)
  install=(apt-get install -y --no-install-recommends "${want[@]}")
  if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then run=(sudo -n "${run[@]}"); else
      echo "Neither root nor sudo without a password, so nothing is installed. As root, before the same command again:" >&2
      echo "apt-get update && ${install[*]}" >&2
      exit 1
    fi
  fi
  echo "Installing them now: ${install[*]}"
  # A source that is out of reach need not matter for these packages: the install decides.
  "${run[@]}" apt-get update -qq || echo "apt-get update failed; trying with the lists that are there" >&2
  "${run[@]}" "${install[@]}" -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 >/dev/null
fi
check_cargo
