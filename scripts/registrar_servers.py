"""The two registrars of bench_registrar.py and differential.py: ours without plugins, and Debian's Kamailio with what it needs.

Promises: each server is started with files of its own below the folder given, is ready when `start` returns, and is ended by pid;
CPU and memory are those of all its processes together.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOMAIN = "bench.example.t"
KAMAILIO_SQL = "/usr/share/kamailio/mysql"


class Trouble(Exception):
    pass


def kamailio():
    """Kamailio's program, or None."""
    return shutil.which("kamailio", path=os.environ.get("PATH", "") + ":/usr/sbin")


def family(pid):
    """A process and all below it."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as stat:
                    parents.setdefault(int(stat.read().rpartition(")")[2].split()[1]), []).append(int(name))
            except OSError:
                pass
    found, look = [], [pid]
    while look:
        one = look.pop()
        found.append(one)
        look.extend(parents.get(one, []))
    return found


def cpu_seconds(pid):
    """What the scheduler says that a process and those below it have run."""
    total = 0
    for one in family(pid):
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/schedstat", encoding="ascii") as stat:
                    total += int(stat.read().split()[0])
        except OSError:
            pass
    return total / 1e9


def pss_bytes(pid):
    """Proportional set size: shared memory counts once."""
    total = 0
    for one in family(pid):
        with open(f"/proc/{one}/smaps_rollup", encoding="ascii") as rollup:
            total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return total * 1024


def pinned(cpus, command):
    return ["taskset", "-c", cpus, *command] if cpus else command


class Process:
    """A server under test; `command` and `ready` are the subclass's."""

    def __init__(self, folder, port, cpus):
        self.folder, self.port, self.cpus = folder, port, cpus
        self.process = None
        os.makedirs(folder, exist_ok=True)

    def launch(self, command, stdout):
        self.log = open(os.path.join(self.folder, "server.log"), "wb")
        self.process = subprocess.Popen(pinned(self.cpus, command), stdin=subprocess.DEVNULL, stdout=stdout or self.log,
                                        stderr=self.log, cwd=self.folder, start_new_session=True)  # fmt: skip

    def fail(self, what):
        self.stop()
        with open(os.path.join(self.folder, "server.log"), encoding="utf-8", errors="replace") as log:
            tail = "".join(log.readlines()[-8:])
        raise Trouble(f"{what}\n{tail}")

    def stop(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                for one in family(self.process.pid):
                    os.kill(one, signal.SIGKILL)
                self.process.wait()
        self.log.close()

    def cpu(self):
        return cpu_seconds(self.process.pid)

    def pss(self):
        return pss_bytes(self.process.pid)

    def rpc(self, *_):
        raise NotImplementedError


class Partyline(Process):
    name = "partyline"

    def start(self, mode, url, options=()):
        program = os.path.join(ROOT, "target/harness/bench/reg_server")
        self.launch([program, str(self.port), url, f"mode={mode}", *options], subprocess.PIPE)
        if b"ready" not in self.process.stdout.readline():
            self.fail("reg_server did not start")

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            page, _ = self.process.communicate(timeout=60)
            with open(os.path.join(self.folder, "metrics.txt"), "wb") as out:
                out.write(page)
        super().stop()

    def metric(self, name):
        """A figure of the page that it printed when it ended."""
        with open(os.path.join(self.folder, "metrics.txt"), encoding="utf-8") as page:
            for line in page:
                if line.startswith(name + " "):
                    return float(line.split()[1])
        return None


KAMAILIO_CFG = """#!KAMAILIO
debug=0
log_stderror=yes
fork=yes
children={children}
listen=udp:127.0.0.1:{port}
disable_tcp=yes
auto_aliases=no
dns=no
rev_dns=no
maxbuffer=4194304
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "textops.so"
{modules}
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "jsonrpcs.so"
modparam("jsonrpcs", "transport", 4)
modparam("jsonrpcs", "dgram_socket", "{folder}/rpc.sock")
modparam("usrloc", "hash_size", 16)
modparam("usrloc", "use_domain", 1)
modparam("usrloc", "db_mode", {db_mode})
modparam("usrloc", "timer_interval", {timer})
{params}
modparam("registrar", "default_expires", 3600)
modparam("registrar", "min_expires", 60)
modparam("registrar", "max_expires", 86400)
{registrar}
request_route {{
    if (method != "REGISTER") {{
        sl_send_reply("501", "Not Implemented");
        exit;
    }}
{auth}
    save("location");
    exit;
}}
"""

AUTH_ROUTE = """    if (!www_authenticate("$td", "subscriber")) {
        www_challenge("$td", "1");
        exit;
    }"""


class Kamailio(Process):
    name = "kamailio"
    MODES = {"memory": 0, "write_through": 1, "write_back": 2}

    def start(self, mode, url, digest=False, children=1, timer=60, registrar=""):
        modules, params = [], []
        if url != "memory:":
            modules.append('loadmodule "db_mysql.so"')
            params.append(f'modparam("usrloc", "db_url", "{url}")')
        if digest:
            modules += ['loadmodule "auth.so"', 'loadmodule "auth_db.so"']
            params += [f'modparam("auth_db", "db_url", "{url}")', 'modparam("auth_db", "calculate_ha1", 0)',
                       'modparam("auth_db", "password_column", "ha1")', 'modparam("auth_db", "use_domain", 1)',
                       'modparam("auth_db", "load_credentials", "")']  # fmt: skip
        text = KAMAILIO_CFG.format(children=children, port=self.port, modules="\n".join(modules), db_mode=self.MODES[mode],
                                   timer=timer, params="\n".join(params), auth=AUTH_ROUTE if digest else "",
                                   registrar=registrar, folder=self.folder)  # fmt: skip
        with open(os.path.join(self.folder, "kamailio.cfg"), "w", encoding="ascii") as out:
            out.write(text)
        # -x fm: Debian's default allocator costs twice as much. -DD: it stays our child.
        self.launch([kamailio(), "-f", os.path.join(self.folder, "kamailio.cfg"), "-x", "fm", "-m", "512", "-M", "32", "-DD", "-E",
                     "-P", os.path.join(self.folder, "kamailio.pid"), "-Y", self.folder], None)  # fmt: skip
        deadline = time.monotonic() + 20
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.fail("kamailio did not start")
        # Its first child preloads `location` while the others already serve; rows would double.
        if url != "memory:":
            time.sleep(4)

    def answers(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(0.2)
            s.connect(("127.0.0.1", self.port))
            me = s.getsockname()[1]
            try:
                s.send(f"OPTIONS sip:{DOMAIN} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{me};branch=z9hG4bKready\r\nFrom: <sip:a@b>;tag=1\r\n"
                       f"To: <sip:a@b>\r\nCall-ID: ready\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n".encode())  # fmt: skip
                return s.recv(2000).startswith(b"SIP/2.0 501")
            except OSError:
                time.sleep(0.1)
                return False


class MariaDb:
    """A private MariaDB with one database per case."""

    def __init__(self, folder, port):
        self.folder, self.port = folder, port
        self.script("start", str(port))
        with open(os.path.join(folder, "pid"), encoding="ascii") as pid:
            self.pid = int(pid.read())

    def script(self, verb, *rest):
        done = subprocess.run([os.path.join(ROOT, "scripts/mariadb.sh"), verb, self.folder, *rest], check=False, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)  # fmt: skip
        if done.returncode != 0:
            raise Trouble(f"mariadb.sh {verb}: {done.stdout}")

    def stop(self):
        self.script("stop")

    def cpu(self):
        return cpu_seconds(self.pid)

    def sql(self, text, database=""):
        with open(os.path.join(self.folder, "socket"), encoding="ascii") as path:
            sock = path.read().strip()
        done = subprocess.run(["mariadb", "--no-defaults", f"--socket={sock}", "-uroot", "-N", *([database] if database else [])],
                              input=text, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        if done.returncode != 0:
            raise Trouble(f"mariadb: {done.stdout}")
        return done.stdout

    def fresh(self, database, tables):
        """A new database: with Kamailio's tables (`tables` names its files), or empty."""
        self.sql(f"DROP DATABASE IF EXISTS {database}; CREATE DATABASE {database}")
        for name in tables:
            with open(f"{KAMAILIO_SQL}/{name}-create.sql", encoding="utf-8") as text:
                self.sql(text.read(), database)
        return f"mysql://root@127.0.0.1:{self.port}/{database}"

    def add_users(self, database, users):
        name = "CONCAT('u', LPAD(seq, 7, '0'))"
        self.sql(f"INSERT INTO subscriber (username, domain, password, ha1, ha1b) SELECT {name}, '{DOMAIN}', '', "
                 f"MD5(CONCAT({name}, ':{DOMAIN}:secret-', {name})), '' FROM seq_0_to_{users - 1}", database)  # fmt: skip
