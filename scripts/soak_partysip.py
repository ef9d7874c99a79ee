#!/usr/bin/env python3
"""SOAK_MINUTES (default 90) of 300 REGISTER/s for the relinked host of partysip's shape, half of them with 5,000 users and half with
50,000, MySQL behind it. Writes memory and p99 every 30 s to the file given (default target/soak-partysip.csv) and fails when a REGISTER
was lost, or when memory at the end of a half is more than 5 % above that after its first two minutes.

  scripts/soak_partysip.py [FILE]
"""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from bench_partysip import HARNESS, ROOT, STOCK, cpu, rss

RATE, SLICE, PORT = 300, 30, 24790


def main():
    minutes = float(os.environ.get("SOAK_MINUTES", "90"))
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/soak-partysip.csv")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="partyline-soak-"))
    mariadb = str(ROOT / "scripts/mariadb.sh")
    failed = []
    subprocess.run(["cc", "-O2", "-o", folder / "load", ROOT / "c-harness/bench/osip_load.c"], check=True)
    subprocess.run([mariadb, "start", folder / "db", str(PORT + 1)], check=True)
    url = subprocess.run([mariadb, "url", folder / "db"], capture_output=True, text=True, check=True).stdout.strip()
    config = folder / "conf"
    config.write_text(f"serverport_udp = {PORT}\nserverip = 127.0.0.1\nplugins = {STOCK}\n")
    environment = {**os.environ, "PARTYLINE_DB": url, "PARTYLINE_REPORT": "1"}
    try:
        with open(out, "w") as table, open(folder / "report", "w") as errors:
            print("users,seconds,memory_kib,p99_us,cores,lost", file=table)
            for users in (5000, 50000):
                host = subprocess.Popen([HARNESS / "partysip-host-relinked", "-f", config, "-d", HARNESS / "partyline"],
                                        env=environment, stdout=subprocess.PIPE, stderr=errors)
                try:
                    host.stdout.readline()
                    began, early, memory = time.time(), None, 0
                    while time.time() - began < minutes * 30:
                        before, mark = cpu(host.pid), time.time()
                        load = subprocess.run([folder / "load", str(PORT), str(RATE), str(SLICE), str(RATE * SLICE), str(users)],
                                              capture_output=True, text=True)
                        lost, p99 = re.search(r"lost (\d+) .* p99 (\d+)", load.stdout).groups()
                        memory, seconds = rss(host.pid), time.time() - began
                        cores = (cpu(host.pid) - before) / (time.time() - mark)
                        print(f"{users},{seconds:.0f},{memory},{p99},{cores:.3f},{lost}", file=table, flush=True)
                        if int(lost):
                            failed.append(f"{users} users, {seconds:.0f} s: {lost} lost")
                        if early is None and seconds >= 120:
                            early = memory
                    if early is not None and memory > early * 1.05:
                        failed.append(f"{users} users: {early} KiB after two minutes, {memory} KiB at the end")
                finally:
                    host.send_signal(signal.SIGTERM)
                    host.wait(60)
        if not re.search(r"taken over [1-9]", (folder / "report").read_text()):
            failed.append("nothing was taken over")
    finally:
        subprocess.run([mariadb, "stop", folder / "db"])
        shutil.rmtree(folder, ignore_errors=True)
    print("soak_partysip: " + ("; ".join(failed) if failed else f"{minutes:g} minutes, nothing lost, memory flat: {out}"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
