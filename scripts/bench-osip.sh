#!/usr/bin/env bash
# One unmodified osip2 registrar (c-harness/bench/osip_registrar.c) on stock libosip2 and with libpartyline.so preloaded.
# Prints "figure osip_<what> <value> <unit>"; what was seen on the way goes to stderr. About 12 minutes.
#
# CPU and memory with N alive: requests come at one rate and timer J is N / rate, so that each second as many transactions end
#   as begin and N stay; measured for MEASURE seconds once N are reached. Stock: 1,000 and 10,000, at rates that it stands.
# Highest rate: for HOLD seconds with osip2's own timers, no request lost and not one in a thousand retransmitted. Stock first,
#   then ours from 25 times what stock held (10,000/s at least) upwards. Beside the last, osip_floor.c: the same system calls
#   without osip2, which is what no library can go below.
#
# HOLD=5 MEASURE=2 ALIVE="1000 10000" for a short look; PORT, LIB, OSIP_CFLAGS, OSIP_LIBS as elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
PORT=${PORT:-21600}
HOLD=${HOLD:-60}
MEASURE=${MEASURE:-8}
ALIVE=${ALIVE:-1000 10000 100000 300000}
RATE=10000
LIB=${LIB:-$PWD/target/lib/libpartyline.so}
OUT=target/harness/bench
CFLAGS="-O2 -g -std=gnu11 -Wall -Wextra ${OSIP_CFLAGS:-}"
[ -f "$LIB" ] || { echo "no $LIB: make lib" >&2; exit 1; }
mkdir -p $OUT
# shellcheck disable=SC2086
cc $CFLAGS -o $OUT/osip_registrar c-harness/bench/osip_registrar.c ${OSIP_LIBS:--losip2 -losipparser2}
# shellcheck disable=SC2086
cc $CFLAGS -o $OUT/osip_load c-harness/bench/osip_load.c
# shellcheck disable=SC2086
cc $CFLAGS -o $OUT/osip_floor c-harness/bench/osip_floor.c

calc() { awk "BEGIN { printf \"%.${2:-0}f\", $1 }"; }
SERVER_PID=
LOAD_PID=
# Bash forgets a coprocess's id when it has ended: a copy of ours is what is waited for.
PID=
trap '[ -z "$PID$LOAD_PID" ] || kill $PID $LOAD_PID 2>/dev/null || true' EXIT

PROGRAM=osip_registrar
# start PRELOAD [J]: the server as a coprocess, asked through its stdin
start() {
    coproc SERVER { exec env ${1:+LD_PRELOAD=$1} PARTYLINE_REPORT=${1:+1} $OUT/$PROGRAM "$PORT" "${2:-0}" 2>$OUT/report; }
    PID=$SERVER_PID
    read -r -t 10 _ <&"${SERVER[0]}"
}
ask() { echo >&"${SERVER[1]}"; read -r -t 30 _ CPU _ REQUESTS _ _ _ LIVE _ RSS <&"${SERVER[0]}"; }
# A preloaded run in which the engine executed nothing would compare stock with stock.
stop() {
    eval "exec ${SERVER[1]}>&-"
    wait "$PID" 2>/dev/null || true
    PID=
    if [ -n "$1" ] && ! grep -q 'engine: nist created [1-9].* executed [1-9]' $OUT/report; then
        echo "the engine was not in use" >&2
        exit 1
    fi
}

# cpu NAME PRELOAD ALIVE RATE: into CPU_OF_<NAME>_<ALIVE> and MEMORY_OF_<NAME>_<ALIVE> as well
cpu() {
    local cpu requests rss fill per memory
    fill=$(calc "$3 / $4 + 1" 2)
    start "$2" "$(calc "$3 * 1000 / $4")"
    ask; rss=$RSS
    $OUT/osip_load "$PORT" "$4" "$(calc "$fill + $MEASURE + 1" 2)" >$OUT/load &
    LOAD_PID=$!
    sleep "$fill"
    ask; cpu=$CPU requests=$REQUESTS memory=$(calc "($RSS - $rss) / ($LIVE + 1)" 2)
    sleep "$MEASURE"
    ask; per=$(calc "($CPU - $cpu) / ($REQUESTS - $requests + 1)" 1)
    echo "  $1 with $LIVE alive: $((REQUESTS - requests)) requests in $MEASURE s, $per us each" >&2
    kill $LOAD_PID 2>/dev/null || true
    wait $LOAD_PID 2>/dev/null || true
    LOAD_PID=
    stop "$2"
    if [ "$LIVE" -lt $(($3 * 9 / 10)) ]; then
        echo "  $1 does not get to $3 alive" >&2
        return
    fi
    echo "figure osip_$1_cpu_at_$3 $per us"
    echo "figure osip_$1_memory_at_$3 $memory kB"
    printf -v "CPU_OF_$1_$3" %s "$per"
    printf -v "MEMORY_OF_$1_$3" %s "$memory"
}

# holds NAME PRELOAD RATE
holds() {
    local said lost again cpu requests most=$(($3 * HOLD / 1000))
    start "$2"
    ask; cpu=$CPU requests=$REQUESTS
    said=$($OUT/osip_load "$PORT" "$3" "$HOLD" $most) || true
    ask
    PER=$(calc "($CPU - $cpu) / ($REQUESTS - $requests + 1)" 1)
    echo "  $1 $3/s for $HOLD s: $said; $PER us of CPU per request, $LIVE alive" >&2
    stop "$2"
    lost=$(awk '{ print $6 }' <<<"$said"); again=$(awk '{ print $8 }' <<<"$said")
    [ "$(awk '{ print $2 }' <<<"$said")" = $(($3 * HOLD)) ] && [ "$lost" = 0 ] && [ "$again" -le $most ]
}

# rate NAME PRELOAD RATE...: rising, the last that holds into BEST
rate() {
    local name=$1 preload=$2 per=0
    BEST=0
    shift 2
    for one in "$@"; do
        if holds "$name" "$preload" "$one"; then BEST=$one per=$PER; else break; fi
    done
    echo "figure osip_${name}_rate $BEST /s"
    [ "$BEST" = 0 ] || echo "figure osip_${name}_cpu_per_register $per us"
}

for n in $ALIVE; do cpu ours "$LIB" "$n" $RATE; done
for n in $ALIVE; do
    case $n in
    1000) cpu stock "" 1000 1000 ;;
    10000) cpu stock "" 10000 150 ;;
    esac
done
rate stock "" 200 300 400 500 700 1000
stock=$BEST
first=$((stock * 25 > 10000 ? stock * 25 : 10000))
rate ours "$LIB" $first $((first * 5 / 4)) $((first * 3 / 2))
ours=$BEST
if [ "$ours" != 0 ]; then
    PROGRAM=osip_floor
    holds floor "" "$ours" && echo "figure osip_floor_cpu_per_register $PER us"
    PROGRAM=osip_registrar
fi

[ "$stock" = 0 ] || echo "figure osip_rate_ratio $(calc "$ours / $stock" 1) x"
[ -z "${CPU_OF_ours_1000:-}" ] || [ -z "${CPU_OF_ours_300000:-}" ] ||
    echo "figure osip_cpu_ratio_300k_to_1k $(calc "$CPU_OF_ours_300000 / $CPU_OF_ours_1000" 3) x"
# With as many alive in both, the most that stock gets to.
for n in 10000 1000; do
    mine=MEMORY_OF_ours_$n theirs=MEMORY_OF_stock_$n
    [ -n "${!mine:-}" ] && [ -n "${!theirs:-}" ] || continue
    echo "figure osip_memory_ratio $(calc "${!mine} / ${!theirs}" 3) x"
    break
done
