#!/usr/bin/env python3
"""Answering through partyline's transport and scheduler beside bare loops in C over the same system calls, the server on one
core, the load on another: make bench-transport [BENCH_ARGS=quick]. Prints "figure net_<what> <value> <unit>".

A round runs all servers in turn; a figure is the median of the ratios of CPU time per message within rounds."""

import os, pathlib, resource, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK = "quick" in sys.argv[1:]
ROUNDS, SECONDS = (3, 1) if QUICK else (7, 2)
OUT = ROOT / "target/bench"
PORT = int(os.environ.get("PORT", "24300"))
CORES = sorted(os.sched_getaffinity(0))
SERVER, LOAD = CORES[0], CORES[-1]
ECHO = ROOT / "target/release/examples/net_echo"


def build():
    OUT.mkdir(parents=True, exist_ok=True)
    for name in ("udp_bare", "tcp_bare", "tcp_idle"):
        source = ROOT / f"c-harness/bench/{name}.c"
        subprocess.run(["cc", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", OUT / name, source], check=True)
    cargo = os.environ.get("CARGO", "cargo")
    subprocess.run([cargo, "build", "--quiet", "--release", "--example", "net_echo"], cwd=ROOT, check=True)


def pinned(core, command, **more):
    return subprocess.Popen(["taskset", "-c", str(core), *map(str, command)], stdout=subprocess.PIPE, text=True, **more)


def listening(port, process):
    """Waits until the server has its sockets."""
    while process.poll() is None:
        if any(f":{port:04X} " in pathlib.Path(f"/proc/net/{name}").read_text() for name in ("udp", "tcp")):
            return
        time.sleep(0.01)
    sys.exit(f"bench-transport: the server ended with {process.returncode}")


def words(text):
    """'name key value key value': the values by key."""
    parts = text.split()
    return dict(zip(parts[1::2], map(float, parts[2::2])))


class Ports:
    """A port that was just used has connections in TIME_WAIT: each run takes the next."""

    next = PORT

    @classmethod
    def take(cls):
        cls.next += 1
        return cls.next


def once(server, load):
    """CPU per message of one run, and the load's own line."""
    port = Ports.take()
    process = pinned(SERVER, [part if part != "PORT" else port for part in server], stdin=subprocess.PIPE)
    listening(port, process)
    said = pinned(LOAD, [part if part != "PORT" else port for part in load]).communicate(timeout=60)[0]
    report = process.communicate(timeout=30)[0]
    if process.returncode != 0 or not report:
        sys.exit(f"bench-transport: {server} ended with {process.returncode}: {report}")
    return words(report), words(said.splitlines()[0])


def compare(what, servers, load):
    """servers: the first is what the others are compared with."""
    costs, rates = {name: [] for name in servers}, {name: [] for name in servers}
    for round in range(ROUNDS):
        order = list(servers)
        for name in order[round % len(order):] + order[: round % len(order)]:
            cost, load_said = once(servers[name], load)
            costs[name].append(cost["cpu_us_per_message"])
            rates[name].append(load_said["per_second"])
    base = next(iter(servers))
    for name in servers:
        cost, rate = statistics.median(costs[name]), statistics.median(rates[name])
        print(f"  {what} {name}: {cost:.2f} us of CPU per message, {rate:.0f}/s", flush=True)
    for name in list(servers)[1:]:
        ratios = sorted(ours / theirs for ours, theirs in zip(costs[name], costs[base]))
        print(f"figure {name} {statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} rounds)", flush=True)


def idle():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    count = min(100_000, limit - 1_000)
    if QUICK:
        count = min(count, 5_000)
    port = Ports.take()
    process = pinned(SERVER, [ECHO, port, "sched"])
    listening(port, process)
    load = pinned(LOAD, [OUT / "tcp_idle", port, count, 20_000, 3 if QUICK else 10, process.pid])
    said = load.communicate(timeout=170)[0].splitlines()
    if load.returncode != 0:
        process.kill()
        sys.exit(f"bench-transport: tcp_idle ended with {load.returncode}")
    process.communicate(timeout=30)
    opened, among = words(said[0]), words(said[1])
    print(f"figure net_idle_connections {count} connections", flush=True)
    print(f"figure net_idle_bytes_per_connection {opened['bytes_each']:.0f} bytes", flush=True)
    print(f"figure net_accept_rate {opened['opened_per_second']:.0f} /s", flush=True)
    print(f"figure net_idle_message_rate {among['per_second']:.0f} /s", flush=True)
    print(f"figure net_idle_message_p99 {among['p99_ms']:.2f} ms", flush=True)


build()
if len(CORES) < 2:
    sys.exit("bench-transport: the server and the load need a core each")
udp = [OUT / "udp_bare", "load", "PORT", SECONDS, 64]
compare(
    "udp",
    {
        "bare": [OUT / "udp_bare", "serve", "PORT"],
        "net_udp_vs_bare": [ECHO, "PORT", "sched"],
        "net_udp_register_vs_bare": [ECHO, "PORT", "engine"],
    },
    udp,
)
for connections, name in ((64, "net_tcp_vs_bare"), (3_000, "net_tcp_3000_vs_bare")):
    servers = {"bare": [OUT / "tcp_bare", "serve", "PORT"], name: [ECHO, "PORT", "sched"]}
    compare(f"tcp {connections}", servers, [OUT / "tcp_bare", "load", "PORT", SECONDS, connections])
idle()
