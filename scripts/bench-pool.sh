#!/usr/bin/env bash
# The pool beside glibc's malloc, jemalloc, mimalloc and tcmalloc (Debian packages libjemalloc2, libmimalloc2.0,
# libtcmalloc-minimal4), each preloaded under the same osip2 program: scripts/bench-pool.sh [RUNS]
# Every round runs all allocators in turn; a figure is the median of the ratios within rounds. The interval beside it is
# the 95 % one of the median (binomial). Above 1: ours is faster, or needs less.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-${RUNS:-15}}
LIB=${PARTYLINE_LIB:-target/lib/libpartyline.so.0}
[ -e "$LIB" ] || { echo "bench-pool: $LIB is missing: run make lib first" >&2; exit 1; }
mkdir -p target/bench
cc -O2 -g -std=gnu11 -Wall -Wextra -Werror -o target/bench/pool_bench c-harness/bench/pool_bench.c \
    $(pkg-config --cflags --libs libosip2 2>/dev/null || echo -losip2 -losipparser2) -lpthread
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

def once(case, library):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PARTYLINE_")}
    environment["LD_PRELOAD"] = library
    if library == ours:
        # A run in which the pool was not called would compare libc with libc.
        environment["PARTYLINE_REPORT"] = "1"
    done = subprocess.run(["target/bench/pool_bench", *cases[case]], env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"bench-pool: {case} failed: {done.stderr}")
    if library == ours and ("given to osip2" not in done.stderr or "osip_malloc 0 " in done.stderr):
        sys.exit(f"bench-pool: the pool was not in use: {done.stderr}")
    return float(done.stdout.split()[1])

for case in cases:
    times = {name: [] for name in allocators}
    for round in range(runs):
        order = list(allocators)
        # Nobody always runs first, or always after the same one.
        order = order[round % len(order):] + order[:round % len(order)]
        for name in order:
            times[name].append(once(case, allocators[name]))
    unit = "KiB" if case == "mix" else "ns"
    print(f"{case}: " + ", ".join(f"{name} {statistics.median(t):.0f} {unit}" for name, t in times.items()), flush=True)
    for name in allocators:
        if name == "partyline":
            continue
        ratios = sorted(theirs / mine for theirs, mine in zip(times[name], times["partyline"]))
        half = 1.96 * math.sqrt(runs) / 2
        low, high = ratios[max(0, int(runs / 2 - half))], ratios[min(runs - 1, math.ceil(runs / 2 + half))]
        kind = "poolmem" if case == "mix" else "pool"
        print(f"  {name}: 95 % interval {low:.2f} to {high:.2f}")
        print(f"figure {kind}_{case}_vs_{name} {statistics.median(ratios):.3f} x", flush=True)
PY
