#!/usr/bin/env bash
# A private MariaDB: own data directory, socket and port, started and stopped by pid. Never touches a system service.
#   scripts/mariadb.sh start DIR PORT   prints nothing when ready; root without password over the socket and 127.0.0.1
#   scripts/mariadb.sh stop DIR         asks it to end and waits
#   scripts/mariadb.sh kill DIR         kill -9
#   scripts/mariadb.sh url DIR          prints mysql://root@127.0.0.1:PORT/partyline
#   scripts/mariadb.sh cpu DIR          prints user+system CPU seconds that it has used so far
# innodb_flush_log_at_trx_commit stays 1: what is committed is on disk.
set -euo pipefail
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
verb=$1 dir=$2
mkdir -p "$dir"; dir=$(cd "$dir" && pwd)
export PATH="$PATH:/usr/sbin"
pidfile=$dir/pid
alive() { [ -s "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; }
case $verb in
  start)
    [ $# -eq 3 ] || usage
    port=$3
    alive && { echo "mariadb.sh: a server already runs in $dir (pid $(cat "$pidfile"))" >&2; exit 1; }
    for tool in mariadbd mariadb-install-db; do
      command -v $tool >/dev/null || { echo "mariadb.sh: $tool is missing: apt-get install mariadb-server-core mariadb-client-core" >&2; exit 1; }
    done
    me=$(id -un)
    if [ ! -d "$dir/data/mysql" ]; then
      mkdir -p "$dir/data" "$dir/tmp"
      # --force: it wants to look up this machine's name, which a container or chroot may not know; nothing here needs it.
      mariadb-install-db --no-defaults --force --user="$me" --datadir="$dir/data" --auth-root-authentication-method=normal \
        --skip-test-db >"$dir/install.log" 2>&1 || {
          echo "mariadb.sh: mariadb-install-db failed, see $dir/install.log:" >&2
          head -5 "$dir/install.log" >&2
          exit 1
        }
    fi
    echo "$port" >"$dir/port"
    # A unix socket's path holds at most 107 bytes: one under a deep folder goes to /tmp.
    sock=$dir/sock
    [ ${#sock} -le 100 ] || sock=$(mktemp -u /tmp/partyline-mariadb-XXXXXX.sock)
    echo "$sock" >"$dir/socket"
    mariadbd --no-defaults --user="$me" --datadir="$dir/data" --tmpdir="$dir/tmp" --socket="$sock" --port="$port" \
      --bind-address=127.0.0.1 --pid-file="$dir/mariadbd.pid" --log-error="$dir/error.log" --skip-name-resolve \
      --skip-log-bin --performance-schema=OFF --innodb-flush-log-at-trx-commit=1 --innodb-buffer-pool-size=256M \
      --innodb-log-file-size=256M --max-connections=200 ${MARIADB_EXTRA:-} </dev/null >>"$dir/stdout.log" 2>&1 &
    echo $! >"$pidfile"
    disown
    for _ in $(seq 1 300); do
      if ! alive; then echo "mariadb.sh: mariadbd ended at start, see $dir/error.log:" >&2; tail -5 "$dir/error.log" >&2; exit 1; fi
      if mariadb --no-defaults --socket="$sock" -uroot -e 'CREATE DATABASE IF NOT EXISTS partyline' 2>/dev/null; then
        mariadb --no-defaults --socket="$sock" -uroot -e "CREATE USER IF NOT EXISTS root@'127.0.0.1'; GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION"
        exit 0
      fi
      sleep 0.1
    done
    echo "mariadb.sh: no answer within 30 s, see $dir/error.log" >&2; exit 1 ;;
  stop|kill)
    alive || { rm -f "$pidfile"; exit 0; }
    pid=$(cat "$pidfile")
    if [ "$verb" = kill ]; then kill -9 "$pid"; else kill "$pid"; fi
    for _ in $(seq 1 600); do kill -0 "$pid" 2>/dev/null || { rm -f "$pidfile"; exit 0; }; sleep 0.05; done
    echo "mariadb.sh: pid $pid did not end within 30 s" >&2; exit 1 ;;
  url) echo "mysql://root@127.0.0.1:$(cat "$dir/port")/partyline" ;;
  cpu) awk -v hz="$(getconf CLK_TCK)" '{sub(/^.*\) /,""); print ($12+$13)/hz}' "/proc/$(cat "$pidfile")/stat" ;;
  *) usage ;;
esac
