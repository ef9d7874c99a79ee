#!/usr/bin/env python3
"""How many REGISTER per second the program of partysip's shape holds: plain, preloaded, relinked with every hook called, and
relinked with libpartyline's plugins answering before a transaction exists; in memory, on SQLite and on MySQL.

  scripts/bench_partysip.py [--forms plain,preload,hooks,first] [--stores memory,sqlite,mysql] [--users 10000] [--hold 40]
                            [--start RATE] [--steps N] [--port 24780]

A rate is held when every REGISTER of `--hold` seconds is answered within its retransmissions, p99 is under `--p99` ms and at most
1 % had to be sent twice. Below 35 s the transactions of 32 s are not all alive yet: such a run is only a look, and is labelled so.
The rate is doubled until it fails, then `--steps` times the middle is tried. Ends by itself; starts its own database.

One line per figure: figure partysip_<form>_<store>_<what>_<users> <value> <unit>
"""
import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
HARNESS = ROOT / "target/harness/partysip"
LIBRARY = ROOT / "target/lib/libpartyline.so.0"
TICK = os.sysconf("SC_CLK_TCK")
# What a first try is: near what each form holds on a small machine, so that the search is short.
START = {"plain": 200, "preload": 500, "hooks": 1500, "first": 8000}
STOCK = "udp, syntax, rgstrar, ls_localdb"
# plain has no database: its libppl keeps bindings in memory.
STORES = {"plain": ["memory"]}


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1))


def run(form, store, rate, users, hold, port, folder, url):
    """One hold of one rate; a dict of what was seen."""
    relinked = form in ("hooks", "first")
    plugins = "udp, mysqlreg" if form == "first" else STOCK
    config = folder / "conf"
    lines = [f"serverport_udp = {port}", "serverip = 127.0.0.1", f"plugins = {plugins}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PARTYLINE_")}
    environment["PARTYLINE_REPORT"] = "1"
    if form == "first":
        lines.append(f"mysqlreg_url = {url or 'memory:'}")
        lines.append(f"mysqlreg_mode = {'write_back' if url else 'memory'}")
    elif url and form != "plain":
        environment["PARTYLINE_DB"] = url
    if form == "preload":
        environment["LD_PRELOAD"] = str(LIBRARY)
    config.write_text("\n".join(lines) + "\n")
    program = HARNESS / ("partysip-host-relinked" if relinked else "partysip-host")
    own = HARNESS / "partyline" if relinked else HARNESS
    with open(folder / "report", "w") as errors:
        host = subprocess.Popen([program, "-f", config, "-d", own], env=environment, stdout=subprocess.PIPE, stderr=errors)
    try:
        if b"ready" not in host.stdout.readline():
            sys.exit("bench_partysip: the host does not start: " + (folder / "report").read_text())
        before, began = cpu(host.pid), time.time()
        load = subprocess.run([folder / "load", str(port), str(rate), str(hold), str(rate * hold // 20), str(users)], capture_output=True, text=True)
        used, took, memory = cpu(host.pid) - before, time.time() - began, rss(host.pid)
    finally:
        host.send_signal(signal.SIGTERM)
        try:
            host.wait(30)
        except subprocess.TimeoutExpired:
            host.kill()
            host.wait()
    seen = re.match(r"sent (\d+) answered (\d+) lost (\d+) retransmitted (\d+) p50 (\d+) p99 (\d+)", load.stdout)
    sent, answered, lost, again, p50, p99 = map(int, seen.groups())
    report = (folder / "report").read_text()
    if form != "plain":
        name = r"taken over (\d+)" if relinked else r"nist created (\d+)"
        count = re.search(name, report)
        if count is None or int(count.group(1)) == 0:
            sys.exit(f"bench_partysip: {form}: nothing was taken over:\n{report}")
    return {"rate": rate, "sent": sent, "answered": answered, "lost": lost, "again": again, "p50": p50, "p99": p99,
            "cpu_us": used * 1e6 / max(answered, 1), "cores": used / took, "kib": memory}


def holds(seen, limits):
    enough = seen["sent"] >= seen["rate"] * limits.hold * 0.98  # the load itself kept up
    return enough and seen["lost"] == 0 and seen["p99"] <= limits.p99 * 1000 and seen["again"] <= seen["sent"] / 100


def search(try_rate, start, steps, limits):
    best, failed, rate = None, None, start
    while True:
        seen = try_rate(rate)
        good = holds(seen, limits)
        print(f"#   {rate}/s: {'held' if good else 'FAILED'} {seen}", flush=True)
        if good:
            best = seen
        else:
            failed = rate
        if best is not None and failed is not None:
            if steps == 0 or failed - best["rate"] <= best["rate"] // 20:
                return best
            steps -= 1
            rate = (failed + best["rate"]) // 2
        elif good:
            rate *= 2
        else:
            rate //= 2
            if rate < 10:
                return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", default="plain,preload,hooks,first")
    parser.add_argument("--stores", default="memory,sqlite,mysql")
    parser.add_argument("--users", default="10000")
    parser.add_argument("--hold", type=int, default=40)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--p99", type=int, default=100, help="in milliseconds")
    parser.add_argument("--port", type=int, default=24780)
    limits = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="partyline-partysip-"))
    subprocess.run(["cc", "-O2", "-o", folder / "load", ROOT / "c-harness/bench/osip_load.c"], check=True)
    if limits.hold < 35:
        print(f"# {limits.hold} s per rate: not all transactions of 32 s are alive, so this is not a steady state")
    database = folder / "mariadb"
    mariadb = [str(ROOT / "scripts/mariadb.sh")]
    stores = limits.stores.split(",")
    try:
        if "mysql" in stores:
            subprocess.run(mariadb + ["start", database, str(limits.port + 1)], check=True)
        for form in limits.forms.split(","):
            for store in STORES.get(form, stores):
                if store not in stores:
                    continue
                for users in map(int, limits.users.split(",")):
                    print(f"# {form}, {store}, {users} users", flush=True)
                    attempt = iter(range(1000))

                    def try_rate(rate):
                        url = ""
                        if store == "sqlite":
                            url = f"sqlite:{folder}/{form}-{users}-{next(attempt)}.db"
                        elif store == "mysql":
                            subprocess.run(["mariadb", "--no-defaults", f"--socket={(database / 'socket').read_text().strip()}",
                                            "-uroot", "-e", "DROP DATABASE partyline; CREATE DATABASE partyline"], check=True)
                            url = subprocess.run(mariadb + ["url", database], capture_output=True, text=True, check=True).stdout.strip()
                        return run(form, store, rate, users, limits.hold, limits.port, folder, url)

                    best = search(try_rate, limits.start or START[form], limits.steps, limits)
                    if best is None:
                        print(f"# {form}, {store}: holds no rate")
                        continue
                    prefix = f"figure partysip_{form}_{store}"
                    label = users if limits.hold >= 35 else f"{users}_{limits.hold}s"
                    print(f"{prefix}_rate_{label} {best['rate']} register/s")
                    print(f"{prefix}_p99_{label} {best['p99']} us")
                    print(f"{prefix}_cpu_{label} {best['cpu_us']:.0f} us/register")
                    print(f"{prefix}_memory_{label} {best['kib']} KiB", flush=True)
    finally:
        if "mysql" in stores:
            subprocess.run(mariadb + ["stop", database])
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
