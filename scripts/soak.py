#!/usr/bin/env python3
"""SOAK_MINUTES (default 90) of 300 REGISTER/s for each of two servers side by side, MySQL behind both: the relinked host of partysip's
shape (every hook called) and c-harness/server in the house of libpartyline (write_through). Half of the time with 5,000 users, half with
50,000.

Every 30 s it writes memory, p99 and CPU to target/soak.csv; at the end the picture target/soak.svg and a table. It fails when a REGISTER
was lost, or when memory at the end of a half is more than 5 % above that after its first two minutes (or after the time in which every
user has registered once, where that is longer).

  scripts/soak.py [FOLDER]        FOLDER gets soak.csv and soak.svg (default: target)
"""
import csv
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from bench_partysip import HARNESS, ROOT, STOCK, cpu, rss

RATE, SLICE, PORT = 300, 30, 24790
HALVES = (5000, 50000)
COLUMNS = ["server", "users", "seconds", "memory_kib", "p99_us", "cores", "lost", "sent_again"]
COLOURS = {"partysip-host": "#b5482a", "server": "#2a6fb5"}


class Soaked:
    """One server under its load, in a thread of its own; every slice becomes a row."""

    def __init__(self, name, command, port, environment, folder):
        self.name, self.command, self.port, self.environment, self.folder = name, command, port, environment, folder
        self.failed = []

    def half(self, users, seconds, began, row):
        with open(self.folder / f"{self.name}.log", "a") as errors:
            process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, stderr=errors)
        early, memory, mark = None, 0, time.time()
        steady = max(120, users / RATE + SLICE)
        try:
            if b"ready" not in process.stdout.readline():
                self.failed.append(f"{self.name} does not start, see its log")
                return
            while time.time() - mark < seconds:
                before, slice_began = cpu(process.pid), time.time()
                load = subprocess.run([self.folder / "load", str(self.port), str(RATE), str(SLICE), str(RATE * SLICE), str(users)],
                                      capture_output=True, text=True)
                seen = re.search(r"lost (\d+) retransmitted (\d+) .* p99 (\d+)", load.stdout)
                if seen is None or process.poll() is not None:
                    self.failed.append(f"{self.name}, {users} users, {time.time() - mark:.0f} s: ended, or the load did: {load.stdout}")
                    return
                lost, again, p99 = map(int, seen.groups())
                memory, cores = rss(process.pid), (cpu(process.pid) - before) / (time.time() - slice_began)
                row([self.name, users, round(time.time() - began), memory, p99, f"{cores:.3f}", lost, again])
                if lost:
                    self.failed.append(f"{self.name}, {users} users, {time.time() - mark:.0f} s: {lost} lost")
                if early is None and time.time() - mark >= steady:
                    early = memory
            if early is not None and memory > early * 1.05:
                self.failed.append(f"{self.name}, {users} users: {early} KiB after {steady:.0f} s, {memory} KiB at the end")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def curves(rows, value, top, left, width, height, title, unit):
    """One panel: a line per server over time, as SVG."""
    last = max(float(row["seconds"]) for row in rows) or 1
    most = max(float(row[value]) for row in rows) * 1.1 or 1
    scale = 1024 if unit == "MB" else 1000
    out = [f'<text x="{left}" y="{top - 10}" font-weight="bold">{title}</text>',
           f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>']
    for part in range(5):
        y = top + height * (1 - part / 4)
        out.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * part / 4 / scale:.1f}</text>')
        out.append(f'<text x="{left + width * part / 4:.0f}" y="{top + height + 16}" text-anchor="middle">{last * part / 4 / 60:.0f} min</text>')
    for name, colour in COLOURS.items():
        points = " ".join(f"{left + width * float(r['seconds']) / last:.1f},{top + height * (1 - float(r[value]) / most):.1f}"
                          for r in rows if r["server"] == name)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    change = [float(r["seconds"]) for r in rows if r["users"] == str(HALVES[1])]
    if change:
        x = left + width * (min(change) - SLICE) / last
        out.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{top}" y2="{top + height}" stroke="#999" stroke-dasharray="4"/>'
                   f'<text x="{x + 4:.0f}" y="{top + 14}">{HALVES[1]:,} users</text>')
    return out


def picture(rows, file):
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="900" height="620" font-family="sans-serif" font-size="12">',
           '<rect width="900" height="620" fill="white"/>']
    out += curves(rows, "memory_kib", 50, 70, 800, 220, f"Resident memory, MB, at {RATE} REGISTER/s each", "MB")
    out += curves(rows, "p99_us", 340, 70, 800, 220, "p99 of the answers, ms", "ms")
    for place, (name, colour) in enumerate(COLOURS.items()):
        out.append(f'<text x="{70 + 160 * place}" y="605" fill="{colour}">{name}</text>')
    file.write_text("\n".join(out + ["</svg>"]) + "\n")


def summary(rows):
    print("server         users  slices  memory first/last MB  p99 median/worst ms  cores  lost  sent again")
    for name in COLOURS:
        for users in HALVES:
            mine = [row for row in rows if row["server"] == name and row["users"] == str(users)]
            if not mine:
                continue
            late = sorted(float(row["p99_us"]) / 1000 for row in mine)
            first, end = (float(row["memory_kib"]) / 1024 for row in (mine[min(len(mine) - 1, max(120, users // RATE + SLICE) // SLICE)], mine[-1]))
            cores = sum(float(row["cores"]) for row in mine) / len(mine)
            lost, again = (sum(int(row[key]) for row in mine) for key in ("lost", "sent_again"))
            print(f"{name:13} {users:6} {len(mine):7} {first:12.1f} / {end:.1f} {late[len(late) // 2]:12.2f} / {late[-1]:.2f} {cores:10.3f} {lost:5} {again:5}")


def main():
    seconds = float(os.environ.get("SOAK_MINUTES", "90")) * 60
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="partyline-soak-"))
    mariadb = str(ROOT / "scripts/mariadb.sh")
    failed = []
    subprocess.run(["cc", "-O2", "-o", folder / "load", ROOT / "c-harness/bench/osip_load.c"], check=True)
    subprocess.run([mariadb, "start", folder / "db", str(PORT + 2)], check=True)
    url = subprocess.run([mariadb, "url", folder / "db"], capture_output=True, text=True, check=True).stdout.strip()
    socket = (folder / "db/socket").read_text().strip()
    subprocess.run(["mariadb", "--no-defaults", f"--socket={socket}", "-uroot", "-e", "CREATE DATABASE soak_host"], check=True)
    config = folder / "conf"
    config.write_text(f"serverport_udp = {PORT}\nserverip = 127.0.0.1\nplugins = {STOCK}\n")
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PARTYLINE_")}
    host_url = url.rsplit("/", 1)[0] + "/soak_host"
    servers = [Soaked("partysip-host", [HARNESS / "partysip-host-relinked", "-f", config, "-d", HARNESS / "partyline"], PORT,
                      {**plain, "PARTYLINE_DB": host_url, "PARTYLINE_REPORT": "1"}, folder),
               Soaked("server", [ROOT / "target/harness/server-partyline", "--port", str(PORT + 1), "--store", url, "--mode",
                                 "write_through", "--auth", "none"], PORT + 1, plain, folder)]  # fmt: skip
    try:
        with open(out / "soak.csv", "w") as table:
            lock, writer, began = threading.Lock(), csv.writer(table, lineterminator="\n"), time.time()
            writer.writerow(COLUMNS)

            def row(values):
                with lock:
                    writer.writerow(values)
                    table.flush()

            for users in HALVES:
                threads = [threading.Thread(target=server.half, args=(users, seconds / 2, began, row)) for server in servers]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        if not re.search(r"taken over [1-9]", (folder / "partysip-host.log").read_text()):
            failed.append("nothing of partysip's was taken over")
    finally:
        subprocess.run([mariadb, "stop", folder / "db"])
    with open(out / "soak.csv") as table:
        rows = list(csv.DictReader(table))
    if rows:
        picture(rows, out / "soak.svg")
        summary(rows)
    failed += [text for server in servers for text in server.failed]
    if failed:
        print(f"soak: FAILED (logs in {folder}): " + "; ".join(failed))
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"soak: {seconds / 60:g} minutes, nothing lost, memory flat: {out}/soak.csv, {out}/soak.svg")


if __name__ == "__main__":
    main()
