#!/usr/bin/env python3
"""Where the legacy server's CPU goes, by perf: the figures of docs/legacy-profile.md.

For each store: the server under a fixed rate until 32 s of transactions are alive, then ten seconds of perf record. Prints the
share per library and per function, and as last lines the share outside the server's own code. Needs perf (linux-perf).
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from demo import CHILD, DOMAIN, ROOT, Row, Server, Trouble, open_store  # noqa: E402
from demo_load import Generator, write_users  # noqa: E402

ALIVE = 34  # seconds until as many transactions end as begin


def report(data, sort):
    out = subprocess.run(["perf", "report", "-i", data, "--no-children", "--sort", sort, "-g", "none"],
                         capture_output=True, text=True, check=True).stdout  # fmt: skip
    rows = []
    for line in out.splitlines():
        share, _, what = line.strip().partition("%")
        if what and not line.startswith("#"):
            rows.append((float(share), " ".join(what.split())))
    return rows


def profile(name, rate, options, folder, users_file, users):
    store = open_store(name, folder, options.mariadb_port)
    try:
        store.fresh()
        row = Row("profile", f"profile {name}", options.server, "write_through", rate)
        server = Server(row, ["--port", str(options.port), "--store", store.url()], folder)
        generator = Generator(os.path.join(ROOT, "scripts/sipp/register.xml"), users_file, folder, options.port, options.sipp_port, CHILD)
        try:
            store.load(users)
            data = os.path.join(folder, f"legacy_{name}.data")
            failures = []

            def record():
                time.sleep(ALIVE)
                done = subprocess.run(["perf", "record", "-g", "-o", data, "-p", str(server.process.pid), "--", "sleep", "10"],
                                      capture_output=True, text=True, check=False)  # fmt: skip
                if done.returncode != 0:
                    failures.append(done.stderr.strip().splitlines()[-1:])

            recorder = threading.Thread(target=record)
            recorder.start()
            result = generator.run(rate, ALIVE + 13, server.alive)
            recorder.join()
            if failures:
                raise Trouble(f"perf record: {failures[0]}")
            if not result.holds:
                print(f"\nStore {name}: {rate}/s did not hold ({result.why}); the profile is one of an overloaded server.")
        finally:
            generator.close()
            server.close()
    finally:
        store.close()
    libraries = report(data, "dso")
    print(f"\nStore {name}, {rate} REGISTER/s, {rate * 32} transactions alive, p99 <= {result.p99_ms:g} ms\n\n| library | share |\n|---|---|")
    for share, library in libraries:
        print(f"| {library} | {share:.1f} % |")
    print("\n| function | library | share |\n|---|---|---|")
    for share, what in report(data, "dso,sym")[:12]:
        library, _, function = what.partition(" ")
        print(f"| `{function.split('] ')[-1]}` | {library} | {share:.1f} % |")
    return 100.0 - sum(share for share, library in libraries if library.startswith("server-legacy"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", default=os.path.join(ROOT, "target/harness/server-legacy"))
    parser.add_argument("--stores", default="none,sqlite,mysql", type=lambda text: text.split(","))
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--port", type=int, default=15060)
    parser.add_argument("--sipp-port", type=int, default=15070)
    parser.add_argument("--mariadb-port", type=int, default=15306)
    options = parser.parse_args()
    for tool, package in (("perf", "linux-perf"), ("sipp", "sip-tester")):
        if shutil.which(tool) is None:
            raise Trouble(f"{tool} is missing: apt-get install {package}")
    folder = os.path.join(ROOT, "target/profile")
    os.makedirs(folder, exist_ok=True)
    users = [f"u{number:06d}" for number in range(options.users)]
    users_file = os.path.join(folder, "users.csv")
    write_users(users_file, users, DOMAIN)
    shares = [(name, profile(name, options.rate, options, folder, users_file, users)) for name in options.stores]
    print()
    for name, share in shares:
        print(f"figure legacy_profile_{name}_outside {share:.1f} %")


if __name__ == "__main__":
    try:
        main()
    except Trouble as trouble:
        print(f"legacy_profile: {trouble}", file=sys.stderr)
        sys.exit(1)
