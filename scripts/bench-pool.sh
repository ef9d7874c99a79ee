#!/usr/bin/env bash
# The pool beside glibc's malloc, jemalloc, mimalloc and tcmalloc (Debian packages libjemalloc2, libmimalloc2.0,
# libtcmalloc-minimal4), each preloaded under the same osip2 program: scripts/bench-pool.sh [RUNS]
# Every round runs all allocators in turn; a figure is the median of the ratios within rounds, and the interval beside it the
# 95 % one of that median (binomial). `pool_*`: time, above 1 ours is faster. `poolmem_*`: memory, above 1 ours needs less;
# what a program's memory grows by with 500 messages (or their blocks) held on each thread; for the cross cases at the end of
# the work, for mix at its peak.
# RUNS=25 takes about 4 minutes on an idle machine (default 15; CASES="trace_1 mix" runs some cases only). Last come lines of
# PARTYLINE_POOL=checked beside the default mode: `checked_<case>` is its time by the default's.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-${RUNS:-15}}
LIB=${PARTYLINE_LIB:-target/lib/libpartyline.so.0}
[ -e "$LIB" ] || { echo "bench-pool: $LIB is missing: run make lib first" >&2; exit 1; }
mkdir -p target/bench
cc -O2 -g -std=gnu11 -Wall -Wextra -Werror -o target/bench/pool_bench c-harness/bench/pool_bench.c \
    -Wl,--no-as-needed $(pkg-config --cflags --libs libosip2 2>/dev/null || echo -losip2 -losipparser2) -Wl,--as-needed -lpthread
exec python3 - "$RUNS" "$(realpath "$LIB")" <<'PY'
import math, os, statistics, subprocess, sys

runs, ours = int(sys.argv[1]), sys.argv[2]
allocators = {"partyline": ours, "glibc": ""}
for name, soname in (("jemalloc", "libjemalloc.so.2"), ("mimalloc", "libmimalloc.so.2"), ("tcmalloc", "libtcmalloc_minimal.so.4")):
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        if os.path.exists(f"{folder}/{soname}"):
            allocators[name] = f"{folder}/{soname}"
            break
    else:
        print(f"SKIPPED {name}: {soname} is not installed", flush=True)
cases = {
    "register_1": ["cycle", "register", "1", "6000"],
    "register_2": ["cycle", "register", "2", "6000"],
    "invite_1": ["cycle", "invite", "1", "5000"],
    "invite_2": ["cycle", "invite", "2", "5000"],
    "cross_register": ["cross", "register", "8000"],
    "cross_invite": ["cross", "invite", "8000"],
    "trace_1": ["trace", "1", "30000"],
    "trace_cross": ["trace-cross", "15000"],
    "mix": ["mix", "2000", "60000"],
}

wanted = os.environ.get("CASES", "").split()
if set(wanted) - set(cases):
    sys.exit(f"bench-pool: no such case: {' '.join(sorted(set(wanted) - set(cases)))}; there are {' '.join(cases)}")
cases = {case: words for case, words in cases.items() if not wanted or case in wanted}

def once(case, library, mode=None):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PARTYLINE_")}
    environment["LD_PRELOAD"] = library
    if mode:
        environment["PARTYLINE_POOL"] = mode
    if library == ours:
        # A run in which the pool was not called would compare libc with libc.
        environment["PARTYLINE_REPORT"] = "1"
    done = subprocess.run(["target/bench/pool_bench", *cases[case]], env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"bench-pool: {case} failed: {done.stderr}")
    if library == ours and ("given to osip2" not in done.stderr or "osip_malloc 0 " in done.stderr):
        sys.exit(f"bench-pool: the pool was not in use: {done.stderr}")
    words = done.stdout.split()
    return float(words[1]), max(1.0, float(words[3]))

def figure(name, ratios):
    ratios = sorted(ratios)
    half = 1.96 * math.sqrt(runs) / 2
    low, high = ratios[max(0, int(runs / 2 - half))], ratios[min(runs - 1, math.ceil(runs / 2 + half))]
    print(f"figure {name} {statistics.median(ratios):.3f} x")
    print(f"  95 % interval {low:.3f} to {high:.3f}", flush=True)

def rounds(names, one):
    results = {name: [] for name in names}
    for round in range(runs):
        # Nobody always runs first, or always after the same one.
        for name in names[round % len(names):] + names[:round % len(names)]:
            results[name].append(one(name))
    return results

for case in cases:
    results = rounds(list(allocators), lambda name: once(case, allocators[name]))
    mine = results.pop("partyline")
    medians = lambda pairs: f"{statistics.median(p[0] for p in pairs):.0f} ns {statistics.median(p[1] for p in pairs):.0f} KiB"
    print(f"{case}: partyline {medians(mine)}, " + ", ".join(f"{name} {medians(pairs)}" for name, pairs in results.items()))
    for name, pairs in results.items():
        figure(f"pool_{case}_vs_{name}", [theirs[0] / own[0] for theirs, own in zip(pairs, mine)])
        figure(f"poolmem_{case}_vs_{name}", [theirs[1] / own[1] for theirs, own in zip(pairs, mine)])
for case in [case for case in ("register_1", "invite_1") if case in cases]:
    results = rounds([None, "checked"], lambda mode: once(case, ours, mode)[0])
    figure(f"checked_{case}", [slow / fast for slow, fast in zip(results["checked"], results[None])])
PY
