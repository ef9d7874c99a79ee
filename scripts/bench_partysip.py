#!/usr/bin/env python3
"""How many REGISTER per second the program of partysip's shape holds: plain, preloaded, relinked with every hook called, and
relinked with libpartyline's plugins answering before a transaction exists; in memory, on SQLite and on MySQL.

  scripts/bench_partysip.py [--forms plain,preload,hooks,first,through] [--stores memory,sqlite,mysql] [--users 10000,100000]
                            [--hold 60] [--tries 3] [--minutes 33] [--start RATE] [--port 24780] [--no-slow]

A rate is held when every REGISTER of `--hold` seconds is answered within its retransmissions, p99 is under `--p99` ms and at most
1 % had to be sent twice. Below 35 s the transactions of 32 s are not all alive yet: such a run is only a look, and is labelled so.
As many users as are asked for are there before the first REGISTER comes (in the forms `first` and `through` they come with it).

Every combination is tried once at the rate that it is known to hold on a small machine; then, in the same order, each that held
at 5/4 of that and each that did not at 2/3, until one try held and the next one did not, `--tries` are used up, or `--minutes` are
over. What matters most comes first. Ends by itself; starts its own database. `first` with a database is in the mode write_back,
`through` is the same in write_through.

One line per figure: figure partysip_<form>_<store>_<what>_<users> <value> <unit>. Each is printed when it is known; a later line of
the same name replaces it. Ratios to `plain` (of the same number of users, in memory: it has no database) stand at the end.
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
STOCK = "udp, syntax, rgstrar, ls_localdb"
FORMS = ("plain", "preload", "hooks", "first", "through")
ALIVE = 32  # seconds that a transaction lives
# What a first try is; what matters most first. plain has no database: its libppl keeps bindings in memory.
PLAN = [
    ("plain", "memory", 10000, 250), ("hooks", "memory", 10000, 3500), ("first", "mysql", 10000, 20000),
    ("preload", "memory", 10000, 1250), ("plain", "memory", 100000, 120), ("hooks", "memory", 100000, 3500),
    ("first", "mysql", 100000, 20000), ("preload", "memory", 100000, 1250), ("hooks", "mysql", 10000, 3000),
    ("through", "mysql", 10000, 8000), ("preload", "mysql", 10000, 1200), ("first", "memory", 10000, 24000),
    ("hooks", "mysql", 100000, 3000), ("through", "mysql", 100000, 8000), ("preload", "mysql", 100000, 1000),
    ("hooks", "sqlite", 10000, 3000), ("first", "sqlite", 10000, 16000), ("preload", "sqlite", 10000, 1200),
    ("first", "memory", 100000, 24000), ("hooks", "sqlite", 100000, 3000), ("first", "sqlite", 100000, 16000),
    ("preload", "sqlite", 100000, 1000), ("through", "sqlite", 10000, 4000), ("through", "sqlite", 100000, 4000),
]  # fmt: skip


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1))


class Host:
    """The host in one of its forms, from `ready` until the block ends; `report` is what it has said by then."""

    def __init__(self, form, plugins, settings, environment, port, folder):
        self.relinked = form not in ("plain", "preload")
        self.errors = folder / "report"
        config = folder / "conf"
        config.write_text("\n".join([f"serverport_udp = {port}", "serverip = 127.0.0.1", f"plugins = {plugins}", *settings]) + "\n")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PARTYLINE_")}
        self.environment = {**clean, "PARTYLINE_REPORT": "1", **environment}
        if form == "preload":
            self.environment["LD_PRELOAD"] = str(LIBRARY)
        program = HARNESS / ("partysip-host-relinked" if self.relinked else "partysip-host")
        self.command = [program, "-f", config, "-d", HARNESS / "partyline" if self.relinked else HARNESS]

    def __enter__(self):
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, stderr=errors)
        if b"ready" not in self.process.stdout.readline():
            self.process.kill()
            self.process.wait()
            sys.exit("bench_partysip: the host does not start: " + self.errors.read_text())
        self.pid = self.process.pid
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.report = self.errors.read_text()


def load(folder, port, rate, hold, users):
    command = [folder / "load", str(port), str(rate), str(hold), str(rate * hold // 20), str(users)]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    seen = re.match(r"sent (\d+) answered (\d+) lost (\d+) retransmitted (\d+) p50 (\d+) p99 (\d+)", said)
    return dict(zip(("sent", "answered", "lost", "again", "p50", "p99"), map(int, seen.groups())))


def run(form, store, rate, users, limits, folder, url):
    """One hold of one rate; a dict of what was seen."""
    environment, settings, plugins = {}, [], STOCK
    if form in ("first", "through"):
        plugins = "udp, mysqlreg"
        mode = "memory" if not url else "write_back" if form == "first" else "write_through"
        settings = [f"mysqlreg_url = {url or 'memory:'}", f"mysqlreg_mode = {mode}"]
    else:
        plugins += ", prefill"
        environment["PREFILL_USERS"] = str(users)
        if url:
            environment["PARTYLINE_DB"] = url
    with Host(form, plugins, settings, environment, limits.port, folder) as host:
        empty, before, began = rss(host.pid), cpu(host.pid), time.time()
        seen = load(folder, limits.port, rate, limits.hold, users)
        used, took, memory = cpu(host.pid) - before, time.time() - began, rss(host.pid)
    if form != "plain":
        # `first` makes no transaction, and partysip's loops have nothing to do: what answers is the engine of the plugin.
        name = r"taken over (\d+)" if host.relinked else r"nist created (\d+)"
        count = re.search(name, host.report)
        if count is None or int(count.group(1)) == 0:
            sys.exit(f"bench_partysip: {form}: nothing was taken over:\n{host.report}")
    alive = max(1, min(seen["answered"], rate * ALIVE))
    return {"rate": rate, **seen, "cpu_us": round(used * 1e6 / max(seen["answered"], 1), 1), "cores": round(used / took, 2),
            "kib": memory, "bytes_per_live": (memory - empty) * 1024 // alive}


def holds(seen, limits):
    enough = seen["sent"] >= seen["rate"] * limits.hold * 0.98  # the load itself kept up
    return enough and seen["lost"] == 0 and seen["p99"] <= limits.p99 * 1000 and seen["again"] <= seen["sent"] / 100


class Combination:
    """A form, a store and a number of users: what is the next rate to try, and the best that held."""

    def __init__(self, form, store, users, start):
        self.form, self.store, self.users, self.next = form, store, users, start
        self.best, self.failed, self.tries = None, None, 0

    def took(self, seen, good):
        self.tries += 1
        if good and (self.best is None or seen["rate"] > self.best["rate"]):
            self.best = seen
        elif not good:
            self.failed = min(seen["rate"], self.failed or seen["rate"])
        if self.best is None:
            self.next = max(20, seen["rate"] * 2 // 3)
        elif self.failed is None:
            self.next = self.best["rate"] * 5 // 4
        else:
            self.next = None if self.failed <= self.best["rate"] * 13 // 10 else (self.failed + self.best["rate"]) // 2

    def figures(self, limits):
        label = self.users if limits.hold >= 35 else f"{self.users}_{limits.hold}s"
        name, best = f"figure partysip_{self.form}_{self.store}", self.best
        return [f"{name}_rate_{label} {best['rate']} register/s", f"{name}_p99_{label} {best['p99']} us",
                f"{name}_cpu_{label} {best['cpu_us']} us/register", f"{name}_memory_{label} {best['kib']} KiB",
                f"{name}_memory_per_live_{label} {best['bytes_per_live']} bytes"]  # fmt: skip


def ratios(done, limits):
    plain = {one.users: one.best for one in done if one.form == "plain" and one.best}
    for one in done:
        base = plain.get(one.users)
        if one.form == "plain" or base is None or one.best is None:
            continue
        label = one.users if limits.hold >= 35 else f"{one.users}_{limits.hold}s"
        name = f"figure partysip_{one.form}_{one.store}"
        yield f"{name}_ratio_{label} {one.best['rate'] / base['rate']:.2f} x"
        yield f"{name}_cpu_ratio_{label} {base['cpu_us'] / one.best['cpu_us']:.1f} x"
        if one.form in ("preload", "hooks"):
            yield f"{name}_memory_per_live_ratio_{label} {one.best['bytes_per_live'] / base['bytes_per_live']:.2f} x"


def slow(limits, folder, threads=16, milliseconds=20, seconds=15):
    """A hook that sleeps, beside the loops: how many of its calls are answered per second."""
    most = threads * 1000 // milliseconds
    environment = {"PARTYLINE_PLUGINS": "slow=parallel", "PARTYLINE_THREADS": str(threads), "SLOW_MS": str(milliseconds),
                   "SLOW_FILE": str(folder / "slow")}  # fmt: skip
    with Host("hooks", "udp, slow, syntax, rgstrar, ls_localdb", [], environment, limits.port, folder) as host:
        seen = load(folder, limits.port, most * 9 // 10, seconds, 10000)
    calls, at_once = map(int, re.match(r"calls (\d+) most (\d+)", (folder / "slow").read_text()).groups())
    print(f"#   {calls} calls, {at_once} at once at most, {seen}; beside the loops: {'hooks_beside' in host.report}")
    # The last answers may come after the last request.
    rate = seen["answered"] / (seconds + seen["p99"] / 1e6)
    print(f"figure partysip_slow_parallel_calls {rate:.0f} call/s\nfigure partysip_slow_parallel_of_most {rate / most:.2f} x", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--stores", default="memory,sqlite,mysql")
    parser.add_argument("--users", default="10000,100000")
    parser.add_argument("--hold", type=int, default=60)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=33, help="no hold begins that would end later")
    parser.add_argument("--p99", type=int, default=100, help="in milliseconds")
    parser.add_argument("--port", type=int, default=24780)
    parser.add_argument("--no-slow", action="store_true")
    limits = parser.parse_args()
    began = time.time()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="partyline-partysip-"))
    subprocess.run(["cc", "-O2", "-o", folder / "load", ROOT / "c-harness/bench/osip_load.c"], check=True)
    if limits.hold < 35:
        print(f"# {limits.hold} s per rate: not all transactions of {ALIVE} s are alive, so this is not a steady state")
    forms, stores, users = limits.forms.split(","), limits.stores.split(","), [int(n) for n in limits.users.split(",")]
    all_of = [Combination(form, store, count, limits.start or start) for form, store, count, start in PLAN
              if form in forms and store in stores and count in users]  # fmt: skip
    database = folder / "mariadb"
    mariadb = [str(ROOT / "scripts/mariadb.sh")]
    mysql = any(one.store == "mysql" for one in all_of)

    def url_of(one):
        if one.store == "sqlite":
            return f"sqlite:{folder}/{one.form}-{one.users}-{one.tries}.db"
        if one.store != "mysql":
            return ""
        socket = (database / "socket").read_text().strip()
        subprocess.run(["mariadb", "--no-defaults", f"--socket={socket}", "-uroot", "-e",
                        "DROP DATABASE partyline; CREATE DATABASE partyline"], check=True)  # fmt: skip
        return subprocess.run(mariadb + ["url", database], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if mysql:
            subprocess.run(mariadb + ["start", database, str(limits.port + 1)], check=True)
        if "hooks" in forms and not limits.no_slow:
            slow(limits, folder)
        in_time = True
        for _ in range(limits.tries):
            for one in all_of:
                in_time = in_time and time.time() - began + limits.hold + 5 < limits.minutes * 60
                if one.next is None or not in_time:
                    continue
                seen = run(one.form, one.store, one.next, one.users, limits, folder, url_of(one))
                good = holds(seen, limits)
                print(f"# {one.form}, {one.store}, {one.users} users, {one.next}/s: {'held' if good else 'FAILED'} {seen}", flush=True)
                one.took(seen, good)
                if good and one.best is seen:
                    print("\n".join(one.figures(limits)), flush=True)
        print(f"# {time.time() - began:.0f} s; all figures again, and ratios to plain:")
        for one in all_of:
            if one.best is None:
                print(f"# {one.form}, {one.store}, {one.users} users: held no rate that was tried ({one.tries} tries)")
            else:
                print("\n".join(one.figures(limits)))
        print("\n".join(ratios(all_of, limits)))
    finally:
        if mysql:
            subprocess.run(mariadb + ["stop", database])
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
