"""One run of sipp against a server on this machine: REGISTER at a fixed rate for a fixed time, and what came of it.

Promises to demo.py: `run` ends within the time asked for plus GRACE seconds, whatever the server does; what it says of lost
calls counts every call that was begun and not answered by 200; response times are counted by sipp in buckets, so a percentile
is the upper bound of its bucket.
"""

import csv
import os
import resource
import subprocess
import time
from dataclasses import dataclass, field

GRACE = 4.0  # seconds after the last REGISTER: an answer that comes later is lost
LATE_MS = 100  # a rate holds only when p99 is below this
# sipp's own 64 KiB hold a hundred answers: a server that answers a batch at once overruns it, sipp sends again after 500 ms and
# the call counts as late although its answer was there at once. The system may give less (net.core.rmem_max).
BUFFER = 4 << 20
REACHED = 0.98  # of the calls asked for: below it the generator did not make the rate


@dataclass
class Result:
    rate: float  # asked for
    seconds: float  # asked for
    created: int = 0
    answered: int = 0
    lost: int = 0
    retransmissions: int = 0
    made: float = 0.0  # calls begun per second
    p50_ms: float = 0.0  # upper bound of the bucket; inf above the last one
    p99_ms: float = 0.0
    holds: bool = False
    short: bool = False  # the generator did not make the rate
    ended_after: float = 0.0
    why: str = ""
    generator_cpu: float = 0.0  # cores
    machine_busy: float = 0.0  # of all cores, 0 to 1
    buckets: list = field(default_factory=list)


def cpu_of(pid):
    """User and system seconds of a process, all its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_times():
    """(busy, all) jiffies of the machine so far."""
    with open("/proc/stat", encoding="ascii") as stat:
        times = [int(word) for word in stat.readline().split()[1:9]]
    return sum(times) - times[3] - times[4], sum(times)


def write_users(path, users, domain):
    with open(path, "w", encoding="ascii") as out:
        out.write("SEQUENTIAL\n")
        out.writelines(f"{user};{domain};\n" for user in users)


def read_stat(path):
    """The last whole line of sipp's statistics as {column: text}, or None."""
    try:
        with open(path, encoding="latin-1") as stat:
            text = stat.read()
    except FileNotFoundError:
        return None
    rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines(), delimiter=";"))
    if len(rows) < 2 or len(rows[-1]) < len(rows[0]) - 1:
        return None
    return dict(zip(rows[0], rows[-1]))


def buckets_of(stat):
    """[(upper bound in ms, count)] of the scenario's ResponseTimeRepartition."""
    buckets = []
    for name, value in stat.items():
        if name.startswith("ResponseTimeRepartition") and "_" in name:
            bound = name.rpartition("_")[2]
            if bound.startswith("<"):
                buckets.append((float(bound[1:]), int(value or 0)))
            elif bound.startswith(">="):
                buckets.append((float("inf"), int(value or 0)))
    return sorted(buckets)


def percentile(buckets, share):
    total = sum(count for _, count in buckets)
    if total == 0:
        return float("inf")
    seen = 0
    for bound, count in buckets:
        seen += count
        if seen >= share * total:
            return bound
    return float("inf")


class Generator:
    """sipp with its scenario and users. `close` ends what runs."""

    def __init__(self, scenario, users_file, folder, target_port, own_port, child):
        self.scenario, self.users_file, self.folder = scenario, users_file, folder
        self.target_port, self.own_port, self.child = target_port, own_port, child
        self.process = None

    def start(self, rate, total):
        stat = os.path.join(self.folder, "sipp_stat.csv")
        for name in ("sipp_stat.csv", "sipp_errors.log"):
            try:
                os.remove(os.path.join(self.folder, name))
            except FileNotFoundError:
                pass
        command = ["sipp", f"127.0.0.1:{self.target_port}", "-sf", self.scenario, "-inf", self.users_file,
                   "-i", "127.0.0.1", "-p", str(self.own_port), "-r", str(rate), "-m", str(total),
                   # Calls that may be open at once: more than this and the rate is lost anyway.
                   "-l", str(max(2000, rate * 3)), "-timer_resol", "1", "-deadcall_wait", "0", "-nostdin",
                   "-watchdog_interval", "0", "-buff_size", str(BUFFER), "-trace_stat", "-stf", stat, "-fd", "1",
                   "-trace_err", "-error_file", os.path.join(self.folder, "sipp_errors.log")]  # fmt: skip
        with open(os.path.join(self.folder, "sipp.log"), "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            cwd=self.folder, env={**os.environ, "TERM": "dumb"}, **self.child)  # fmt: skip
        return stat

    def close(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def run(self, rate, seconds, server_alive):
        """Offers `rate` REGISTER/s for `seconds`. Gives up as soon as the rate cannot hold any more."""
        result = Result(rate, seconds)
        total = int(rate * seconds)
        cpu_before = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy_before, all_before = machine_times()
        began = time.monotonic()
        stat_file = self.start(rate, total)
        all_made = None
        try:
            while True:
                ended = self.process.poll() is not None
                now = time.monotonic() - began
                stat = read_stat(stat_file)
                if stat is not None:
                    self.read(result, stat, total)
                if all_made is None and result.created >= total:
                    all_made = now
                if ended:
                    break
                late = sum(count for bound, count in result.buckets if bound > LATE_MS)
                if late > 0.01 * total:
                    result.why = f"p99 above {LATE_MS} ms"
                    break
                if result.lost > 0:
                    result.why = "a call failed"
                    break
                if not server_alive():
                    result.why = "the server ended"
                    break
                if now > (all_made if all_made is not None else seconds * 1.1) + GRACE:
                    break
                time.sleep(0.25)
        finally:
            self.close()
        wall = time.monotonic() - began
        result.ended_after = wall
        busy_after, all_after = machine_times()
        cpu_after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result.generator_cpu = (cpu_after.ru_utime + cpu_after.ru_stime - cpu_before.ru_utime - cpu_before.ru_stime) / wall
        result.machine_busy = (busy_after - busy_before) / max(1, all_after - all_before)
        if result.why:
            return result
        result.lost = max(result.lost, result.created - result.answered)
        result.short = result.created < REACHED * total or result.made < REACHED * rate
        if result.answered == 0:
            result.why = "no answer at all"
        elif result.lost > 0:
            result.why = f"{result.lost} not answered"
        elif result.p99_ms > LATE_MS:
            result.why = f"p99 above {LATE_MS} ms"
        else:
            result.holds = True
        return result

    @staticmethod
    def read(result, stat, total):
        result.created = int(stat["TotalCallCreated"])
        result.answered = int(stat["SuccessfulCall(C)"])
        result.lost = int(stat["FailedCall(C)"])
        result.made = float(stat["CallRate(C)"])
        result.retransmissions = int(stat["Retransmissions(C)"])
        result.buckets = [(bound, count) for bound, count in buckets_of(stat) if count > 0]
        result.p50_ms = percentile(result.buckets, 0.50)
        result.p99_ms = percentile(result.buckets, 0.99)
