#!/usr/bin/env python3
"""The comparison: one SIP registrar in C, before and after Partyline, under the same load with the same users.

Rows: before (plain C on stock osip2), the same with LD_PRELOAD=libpartyline.so, the same program on Partyline; each answers 200
only after the commit. Extra rows: Partyline in write_back and memory, which answer before it.

Per row the highest rate is looked for that holds: no answer lost and p99 below 100 ms. It is searched in steps of 10 s and then
held for 60 s, for a transaction lives 32 s and its cost shows only when that many are alive; when the hold fails, a lower rate
is held. The server is started anew for each step. Nothing is left running, whatever way this ends.

Last lines: figure <name> <value> <unit>. Everything is in target/demo/report.json as well.
"""

import argparse
import ctypes
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from demo_load import Generator, cpu_of, write_users  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOMAIN = "example.org"
HOLDS_PER_ROW = 6
FINE_ENOUGH = 1.12  # the lowest rate that failed over the highest that held


class Trouble(Exception):
    """Ends the demo with one sentence."""


def orphan_guard():
    """In the child: end when the demo ends, even by kill -9. Linux only, like the demo."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


# A session of their own: Ctrl-C reaches the demo only, and the demo ends the others in order.
CHILD = {"start_new_session": True, "preexec_fn": orphan_guard}


class Nothing:
    """No store: users are made at their first REGISTER. For the comparison with partysip, which has no database either."""

    def url(self):
        return "none"

    def fresh(self):
        pass

    def load(self, users):
        pass

    def bindings(self):
        return None

    def cpu(self):
        return 0.0

    def close(self):
        pass


class Sqlite:

    def __init__(self, folder):
        self.path = os.path.join(folder, "demo.db")

    def url(self):
        return "sqlite:" + self.path

    def fresh(self):
        for suffix in ("", "-wal", "-shm", "-journal"):
            if os.path.exists(self.path + suffix):
                os.remove(self.path + suffix)

    def load(self, users):
        with sqlite3.connect(self.path, timeout=10) as db:
            db.executemany("INSERT INTO subscriber (username, domain) VALUES (?, ?)", [(user, DOMAIN) for user in users])
        db.close()

    def bindings(self):
        db = sqlite3.connect(self.path, timeout=10)
        try:
            return db.execute("SELECT COUNT(*) FROM location").fetchone()[0]
        finally:
            db.close()

    def cpu(self):
        return 0.0  # runs inside the server

    def close(self):
        pass


class MySql:

    def __init__(self, folder, port):
        self.folder, self.script = os.path.join(folder, "mariadb"), os.path.join(ROOT, "scripts/mariadb.sh")
        started = subprocess.run([self.script, "start", self.folder, str(port)], start_new_session=True, check=False)
        if started.returncode != 0:
            raise Trouble("the private MariaDB did not start")
        with open(os.path.join(self.folder, "socket"), encoding="utf-8") as file:
            self.socket = file.read().strip()
        with open(os.path.join(self.folder, "pid"), encoding="ascii") as file:
            self.pid = int(file.read())

    def url(self):
        return subprocess.run([self.script, "url", self.folder], check=True, capture_output=True, text=True).stdout.strip()

    def sql(self, text, database="partyline"):
        done = subprocess.run(["mariadb", "--no-defaults", f"--socket={self.socket}", "-uroot", "-N", "-B", database],
                              input=text, capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode != 0:
            raise Trouble(f"MariaDB: {done.stderr.strip()}")
        return done.stdout

    def fresh(self):
        self.sql("DROP DATABASE IF EXISTS partyline; CREATE DATABASE partyline", database="mysql")

    def load(self, users):
        for at in range(0, len(users), 1000):
            values = ",".join(f"('{user}','{DOMAIN}')" for user in users[at : at + 1000])
            self.sql(f"INSERT INTO subscriber (username, domain) VALUES {values}")

    def bindings(self):
        return int(self.sql("SELECT COUNT(*) FROM location"))

    def cpu(self):
        return cpu_of(self.pid)

    def close(self):
        subprocess.run([self.script, "stop", self.folder], start_new_session=True, check=False)


def open_store(db, folder, mariadb_port):
    return {"none": Nothing, "sqlite": lambda: Sqlite(folder), "mysql": lambda: MySql(folder, mariadb_port)}[db]()


class Server:
    """One server process; started until it says 'ready', ended by SIGTERM."""

    def __init__(self, row, arguments, folder):
        self.errors = os.path.join(folder, f"{row.key}.log")
        environment = dict(os.environ)
        if row.preload:
            environment.update(LD_PRELOAD=row.preload, PARTYLINE_REPORT="1")
        with open(self.errors, "ab") as log:
            self.process = subprocess.Popen([row.server, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                            stderr=log, env=environment, **CHILD)  # fmt: skip
        line = self.process.stdout.readline().decode(errors="replace")
        while line and not line.startswith("ready"):
            line = self.process.stdout.readline().decode(errors="replace")
        if not line:
            self.process.wait()
            with open(self.errors, encoding="utf-8", errors="replace") as log:
                said = log.read().strip().splitlines()
            raise Trouble(f"row {row.label}: the server did not start: {said[-1] if said else 'it said nothing'}")
        if row.preload:
            with open(f"/proc/{self.process.pid}/maps", encoding="utf-8", errors="replace") as maps:
                if os.path.basename(row.preload) not in maps.read():
                    raise Trouble(f"row {row.label}: {row.preload} was not preloaded")

    def alive(self):
        return self.process.poll() is None

    def cpu(self):
        return cpu_of(self.process.pid)

    def peak_mb(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def close(self):
        """Returns the last line that the server said, its counters."""
        if self.alive():
            self.process.terminate()
        try:
            out, _ = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, _ = self.process.communicate()
        lines = out.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class Row:
    def __init__(self, key, label, server, mode, start, preload=None, durable=True):
        self.key, self.label, self.server, self.mode = key, label, server, mode
        self.start, self.preload, self.durable = start, preload, durable

    def missing(self):
        return [path for path in (self.server, self.preload) if path and not os.path.exists(path)]


class Demo:
    def __init__(self, options):
        self.options, self.folder = options, os.path.join(ROOT, "target/demo")
        os.makedirs(self.folder, exist_ok=True)
        self.users = [f"u{number:06d}" for number in range(options.users)]
        self.users_file = os.path.join(self.folder, "users.csv")
        write_users(self.users_file, self.users, DOMAIN)
        self.server = None
        self.generator = Generator(os.path.join(ROOT, "scripts/sipp/register.xml"), self.users_file, self.folder,
                                   options.port, options.sipp_port, CHILD)  # fmt: skip
        self.store = open_store(options.db, self.folder, options.mariadb_port)

    def close(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of them running
        self.generator.close()
        if self.server is not None:
            self.server.close()
            self.server = None
        self.store.close()

    def rows(self):
        o = self.options
        quick = max(1000, o.users // 2)
        rows = [
            Row("before", "before", o.server_legacy, "write_through", 100),
            Row("preload", "before + LD_PRELOAD", o.server_legacy, "write_through", 100, preload=o.preload),
            Row("partyline", "partyline", o.server_partyline, "write_through", quick),
            Row("write_back", "partyline write_back*", o.server_partyline, "write_back", quick * 4, durable=False),
            Row("memory", "partyline memory*", o.server_partyline, "memory", quick * 4, durable=False),
        ]
        return [row for row in rows if o.rows is None or row.key in o.rows]

    def attempt(self, row, rate, seconds, loaded):
        """One step: a server, a load, the measures. Returns a dictionary."""
        arguments = ["--port", str(self.options.port), "--store", self.store.url(), "--auth", "user", "--mode", row.mode]
        self.server = Server(row, arguments, self.folder)
        try:
            if not loaded:
                self.store.load(self.users)
                self.refuses_strangers(row)
            server_cpu, database_cpu = self.server.cpu(), self.store.cpu()
            result = self.generator.run(rate, seconds, self.server.alive)
            measured = dict(vars(result))
            if self.server.alive():
                per = 1e6 / max(1, result.answered)
                measured["server_us"] = (self.server.cpu() - server_cpu) * per
                measured["database_us"] = (self.store.cpu() - database_cpu) * per
                measured["peak_mb"] = self.server.peak_mb()
        finally:
            said = self.server.close()
            self.server = None
        measured["server_said"] = said
        verdict = "holds" if result.holds else f"fails after {result.ended_after:.0f} s: {result.why}"
        if result.short:
            verdict += f"; the generator made only {result.made:.0f}/s"
        print(f"  {row.label}: {rate}/s for {seconds:g} s {verdict} (p50 {ms(result.p50_ms)}, p99 {ms(result.p99_ms)})", flush=True)
        return measured

    def refuses_strangers(self, row):
        """Rows are compared at the same work: each has to look the user up, so one that is not in subscriber gets 404."""
        if self.options.db == "none":
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.settimeout(3)
            port = stranger.getsockname()[1]
            lines = [f"REGISTER sip:{DOMAIN} SIP/2.0", f"Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bKstranger;rport", "Max-Forwards: 70",
                     f"From: <sip:stranger@{DOMAIN}>;tag=1", f"To: <sip:stranger@{DOMAIN}>", f"Call-ID: stranger@{port}", "CSeq: 1 REGISTER",
                     f"Contact: <sip:stranger@127.0.0.1:{port}>", "Content-Length: 0", "", ""]  # fmt: skip
            stranger.sendto("\r\n".join(lines).encode(), ("127.0.0.1", self.options.port))
            try:
                answer = stranger.recv(65536).split(b"\r\n")[0].decode(errors="replace")
            except TimeoutError:
                answer = "nothing"
        if not answer.startswith("SIP/2.0 404"):
            raise Trouble(f"row {row.label}: a user who is not in subscriber was answered with {answer}, not with 404")

    def measure(self, row):
        self.store.fresh()
        steps = []

        def step(rate, seconds):
            steps.append(self.attempt(row, rate, seconds, loaded=bool(steps)))
            return steps[-1]

        good, bad = self.search(row, step)
        best, holds = None, 0
        rate = good
        while rate is not None and holds < HOLDS_PER_ROW:
            holds += 1
            held = step(rate, self.options.hold)
            if held["holds"]:
                best = held
                if held["short"]:
                    held["rate"] = tidy(held["made"])
                # Of the failures only the holds bound it from above: a step of 10 s that failed may have been cold.
                if held["short"] or bad is None or bad <= rate * FINE_ENOUGH:
                    break
                higher = tidy(math.sqrt(rate * bad))
                if higher <= rate:
                    break  # what lies between the two rounds to what is known already
                rate = higher
            else:
                bad = rate
                if best is not None:
                    if bad <= best["rate"] * FINE_ENOUGH:
                        break
                    rate = tidy(math.sqrt(best["rate"] * bad))
                    if rate <= best["rate"]:
                        break
                else:
                    # Where cost grows with what is alive, capacity was met with rate * time alive; 32 s will be.
                    lives = min(1.0, held["ended_after"] / 32)
                    rate = tidy(rate * min(0.88, max(0.5, math.sqrt(lives))))
        outcome = {"key": row.key, "label": row.label, "mode": row.mode, "durable": row.durable, "steps": steps, "held": best}
        if best is not None and row.durable:
            # Every step begins with the first user again.
            expected = min(self.options.users, max(step["answered"] for step in steps))
            outcome["bindings"] = self.store.bindings()
            if outcome["bindings"] is not None and outcome["bindings"] < expected:
                raise Trouble(f"row {row.label}: {expected} users were answered, {outcome['bindings']} stand in table location")
        return outcome

    def search(self, row, step):
        """Steps of 10 s: doubles until one fails, then halves the distance twice. Returns the highest that held and the lowest
        that failed in these short steps; None where there is none."""
        rate, good, bad = min(row.start, self.options.ceiling), None, None
        while bad is None and rate <= self.options.ceiling:
            tried = step(rate, self.options.step)
            if not tried["holds"]:
                bad = rate
            elif tried["short"]:
                return tidy(tried["made"] * 0.97), None
            else:
                good, rate = rate, rate * 2
        while good is None:
            rate = tidy(bad / 2)
            if rate < 5 or tried["answered"] == 0:
                return None, bad
            tried = step(rate, self.options.step)
            if tried["holds"]:
                good = rate
            else:
                bad = rate
        for _ in range(self.options.bisect if bad is not None else 0):
            rate = tidy((good + bad) / 2)
            if rate in (good, bad):
                break
            if step(rate, self.options.step)["holds"]:
                good = rate
            else:
                bad = rate
        return good, bad


def tidy(rate):
    """Two to three significant digits: a rate is not known better than that."""
    rate = max(1, int(rate))
    unit = 10 ** max(0, len(str(rate)) - 2)
    return max(1, rate // unit * unit if rate >= 100 else rate)


def ms(value):
    if value == float("inf"):
        return "> 5 s"
    return "< 1 ms" if value <= 1 else f"<= {value:g} ms"


def limit_of(held):
    if held["short"] or held["generator_cpu"] > 0.9:
        return f"the generator ({held['generator_cpu']:.0%} of a core)"
    if held["machine_busy"] > 0.95:
        return f"the machine ({held['machine_busy']:.0%} busy, generator {held['generator_cpu']:.0%} of a core)"
    return f"the server (machine {held['machine_busy']:.0%} busy)"


def table(outcomes, options):
    heads = ("row", "REGISTER/s", "p50", "p99", "server us", "database us", "peak MB", "what bounds it")
    lines = [heads]
    for outcome in outcomes:
        held = outcome["held"]
        if held is None:
            lines.append((outcome["label"], "none held", "", "", "", "", "", ""))
            continue
        database = f"{held['database_us']:.0f}" if options.db == "mysql" else "in server" if options.db == "sqlite" else "none"
        lines.append((outcome["label"], f"{held['rate']:.0f}", ms(held["p50_ms"]), ms(held["p99_ms"]), f"{held['server_us']:.0f}",
                      database, f"{held['peak_mb']:.0f}", limit_of(held)))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(f"Store {options.db}, {options.users} users, held for {options.hold:g} s. us: CPU microseconds per REGISTER, user and system.")
    if any(not outcome["durable"] for outcome in outcomes):
        print("* answers before the commit; a crash loses what was not flushed (write_back) or everything (memory).")


def figures(outcomes):
    held = {outcome["key"]: outcome["held"] for outcome in outcomes if outcome["held"] is not None}
    out = []
    for key, step in held.items():
        out += [(f"demo_{key}_rate", step["rate"], "1/s"), (f"demo_{key}_p50", step["p50_ms"], "ms"),
                (f"demo_{key}_p99", step["p99_ms"], "ms"), (f"demo_{key}_server_cpu", step["server_us"], "us"),
                (f"demo_{key}_database_cpu", step["database_us"], "us"), (f"demo_{key}_peak_memory", step["peak_mb"], "MB")]  # fmt: skip
    if "before" in held and "preload" in held:
        out.append(("demo_preload_rate_ratio", held["preload"]["rate"] / held["before"]["rate"], "x"))
    if "before" in held and "partyline" in held:
        out.append(("demo_cpu_ratio", held["before"]["server_us"] / held["partyline"]["server_us"], "x"))
        out.append(("demo_rate_ratio", held["partyline"]["rate"] / held["before"]["rate"], "x"))
    return out


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    target = os.path.join(ROOT, "target")
    parser.add_argument("--db", choices=("sqlite", "mysql", "none"), default=os.environ.get("DB", "sqlite"))
    parser.add_argument("--server-legacy", default=os.path.join(target, "harness/server-legacy"))
    parser.add_argument("--server-partyline", default=os.path.join(target, "harness/server-partyline"))
    parser.add_argument("--preload", default=os.path.join(target, "lib/libpartyline.so"))
    parser.add_argument("--rows", type=lambda text: text.split(","), help="before,preload,partyline,write_back,memory")
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--port", type=int, default=15060, help="of the servers")
    parser.add_argument("--sipp-port", type=int, default=15070)
    parser.add_argument("--mariadb-port", type=int, default=15306)
    parser.add_argument("--step", type=float, default=10.0, help="seconds of a step of the search")
    parser.add_argument("--hold", type=float, default=60.0, help="seconds of the hold")
    parser.add_argument("--bisect", type=int, default=2, help="steps between the last that held and the first that failed")
    parser.add_argument("--ceiling", type=int, default=200000, help="highest rate to try")
    return parser.parse_args()


def main():
    options = arguments()
    options.server_legacy, options.server_partyline, options.preload = map(
        os.path.abspath, (options.server_legacy, options.server_partyline, options.preload)
    )
    for tool, package in (("sipp", "sip-tester"), *([("mariadb", "mariadb-client-core")] if options.db == "mysql" else [])):
        if shutil.which(tool) is None:
            raise Trouble(f"{tool} is missing: apt-get install {package}")
    began = time.monotonic()
    demo = Demo(options)
    outcomes, absent = [], []
    try:
        for row in demo.rows():
            if row.missing():
                absent.append(f"row {row.label} was not run: {', '.join(row.missing())} is missing")
                print(absent[-1], flush=True)
                continue
            outcomes.append(demo.measure(row))
    finally:
        demo.close()
    made = figures(outcomes)
    # Infinity is no JSON.
    report = {"db": options.db, "users": options.users, "hold_s": options.hold, "seconds": time.monotonic() - began, "cores": os.cpu_count(),
              "rows": outcomes, "absent": absent, "figures": [{"name": n, "value": v, "unit": u} for n, v, u in made]}  # fmt: skip
    text = json.dumps(finite(report), indent=1)
    with open(os.path.join(demo.folder, "report.json"), "w", encoding="utf-8") as out:
        out.write(text + "\n")
    print()
    table(outcomes, options)
    for line in absent:
        print(line)
    for name, value, unit in made:
        print(f"figure {name} {value:.4g} {unit}" if value < 1000 else f"figure {name} {value:.0f} {unit}")
    return 1 if absent or any(outcome["held"] is None for outcome in outcomes) else 0


def finite(value):
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def interrupted(number, frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    try:
        sys.exit(main())
    except Trouble as trouble:
        print(f"demo: {trouble}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        sys.exit(130)
