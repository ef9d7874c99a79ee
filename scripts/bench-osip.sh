#!/usr/bin/env bash
# One unmodified osip2 registrar (c-harness/bench/osip_registrar.c) on stock libosip2 and with libpartyline.so preloaded.
# Prints "figure osip_<what> <value> <unit>". usage: bench-osip.sh [quick]
#   cpu per request with N transactions alive: N are made, then 5,000/s (stock: what it holds) for 2 s are measured
#   highest rate: for 60 s (quick: 10 s), no request lost, none retransmitted more than one in a thousand
set -euo pipefail
cd "$(dirname "$0")/.."
PORT=${PORT:-21600}
SECONDS_EACH=60
QUICK=${1:-}
[ "$QUICK" = quick ] && SECONDS_EACH=10
LIB=${LIB:-$PWD/target/lib/libpartyline.so}
OUT=target/harness/bench
CFLAGS="-O2 -g -std=gnu11 -Wall -Wextra ${OSIP_CFLAGS:-}"
[ -f "$LIB" ] || LIB=$PWD/target/release/libpartyline.so
[ -f "$LIB" ] || { echo "no libpartyline.so: make lib" >&2; exit 1; }
mkdir -p $OUT
# shellcheck disable=SC2086
cc $CFLAGS -o $OUT/osip_registrar c-harness/bench/osip_registrar.c ${OSIP_LIBS:--losip2 -losipparser2}
# shellcheck disable=SC2086
cc $CFLAGS -o $OUT/osip_load c-harness/bench/osip_load.c

# start PRELOAD: the server as a coprocess, asked through its stdin
start() {
    coproc SERVER { exec env ${1:+LD_PRELOAD=$1} $OUT/osip_registrar "$PORT"; }
    read -r _ <&"${SERVER[0]}"
}
ask() { echo >&"${SERVER[1]}"; read -r _ CPU _ REQUESTS _ AGAIN _ ALIVE _ RSS <&"${SERVER[0]}"; }
stop() {
    local pid=$SERVER_PID
    eval "exec ${SERVER[1]}>&-"
    wait "$pid" 2>/dev/null || true
}

# cpu NAME PRELOAD ALIVE FILL_RATE MEASURE_RATE
cpu() {
    local c r rss
    start "$2"
    ask; rss=$RSS
    $OUT/osip_load "$PORT" "$4" "$(awk "BEGIN { print $3 / $4 }")" >/dev/null || true
    ask; c=$CPU; r=$REQUESTS
    if [ "$ALIVE" -lt $(($3 * 9 / 10)) ]; then
        echo "figure osip_$1_cpu_at_$3 none only_${ALIVE}_alive"
    else
        local per; per=$(awk "BEGIN { printf \"%.2f\", ($RSS - $rss) / $ALIVE }")
        $OUT/osip_load "$PORT" "$5" 2 >/dev/null || true
        ask
        echo "figure osip_$1_cpu_at_$3 $(awk "BEGIN { printf \"%.1f\", ($CPU - $c) / ($REQUESTS - $r) }") us"
        [ "$3" -ge 1000 ] && echo "figure osip_$1_memory_at_$3 $per kB"
    fi
    stop
}

# holds NAME PRELOAD RATE
holds() {
    local said lost again
    start "$2"
    ask; local c=$CPU r=$REQUESTS
    said=$($OUT/osip_load "$PORT" "$3" $SECONDS_EACH) || true
    ask
    PER=$(awk "BEGIN { printf \"%.1f\", ($CPU - $c) / ($REQUESTS - $r + 1) }")
    stop
    echo "  $1 $3/s for $SECONDS_EACH s: $said; $PER us of CPU per request" >&2
    lost=$(awk '{ print $6 }' <<<"$said"); again=$(awk '{ print $8 }' <<<"$said")
    [ "$lost" = 0 ] && [ "$again" -le $(($3 * SECONDS_EACH / 1000)) ]
}

# rate NAME PRELOAD RATE...: rising, the last that holds
rate() {
    local name=$1 preload=$2 best=0 per=0
    shift 2
    for one in "$@"; do
        if holds "$name" "$preload" "$one"; then best=$one; per=$PER; else break; fi
    done
    echo "figure osip_${name}_rate $best /s"
    [ "$best" = 0 ] || echo "figure osip_${name}_cpu_per_register $per us"
}

cpu stock "" 1000 500 100
cpu stock "" 10000 600 50
for n in 1000 10000 100000 300000; do cpu ours "$LIB" $n 12000 5000; done
if [ "$QUICK" = quick ]; then
    rate stock "" 200 400 800
    rate ours "$LIB" 5000 10000
else
    rate stock "" 100 200 300 400 500 700 1000
    rate ours "$LIB" 5000 10000 12500 15000
fi
