#!/usr/bin/env python3
"""The same generated sequences of REGISTER to Debian's Kamailio and to Partyline: statuses and states compared.

Each sequence has an address-of-record of its own and goes on until the two differ. After every step both are asked for the bindings
that stand. A difference has to be one of those that docs/differences.md explains (REASONS below says how each is told);
any other fails the run. The seed is printed; --seed repeats a run.
"""

import argparse
import os
import random
import re
import shutil
import socket
import sys
from collections import Counter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from registrar_servers import DOMAIN, ROOT, Kamailio, Partyline, kamailio  # noqa: E402

MAX_CONTACTS = 3
# Groups of URIs that are equal by RFC 3261 section 19.1.4, the first as most write it.
URIS = [
    ["sip:a@h1.example", "sip:a@H1.Example", "sip:%61@h1.example"],
    ["sip:a@h1.example;transport=tcp", "sip:a@h1.example;Transport=TCP"],
    ["sip:b@h1.example:5070", "sip:b@H1.example:5070"],
    ["sip:a@192.0.2.1:5060;line=x"],
    ["sip:A@h1.example"],
]
Q = [None, None, None, "0.5", "1.0", "0.1", "0"]


class Step:
    def __init__(self, call, cseq, contacts, expires, star=False):
        self.call, self.cseq, self.contacts, self.expires, self.star = call, cseq, contacts, expires, star

    def text(self, aor, port, number):
        lines = [f"REGISTER sip:{DOMAIN} SIP/2.0", f"Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bK{aor}{number};rport", "Max-Forwards: 70",
                 f"From: <sip:{aor}@{DOMAIN}>;tag=1", f"To: <sip:{aor}@{DOMAIN}>", f"Call-ID: {self.call}-{aor}", f"CSeq: {self.cseq} REGISTER",
                 "User-Agent: differential"]  # fmt: skip
        if self.star:
            lines.append("Contact: *")
        for uri, seconds, q in self.contacts:
            lines.append(f"Contact: <{uri}>" + (f";expires={seconds}" if seconds is not None else "") + (f";q={q}" if q else ""))
        if self.expires is not None:
            lines.append(f"Expires: {self.expires}")
        return "\r\n".join(lines + ["Content-Length: 0", "", ""]).encode()

    def __str__(self):
        return (f"call {self.call} cseq {self.cseq} expires {self.expires} " + ("*" if self.star else "")
                + " ".join(f"<{u}>" + (f";expires={s}" if s is not None else "") + (f";q={q}" if q else "") for u, s, q in self.contacts))  # fmt: skip


def steps(rng):
    """One sequence. CSeqs mostly rise; now and then one is repeated or goes back."""
    spellings = rng.random() < 0.2
    cseq = {"c1": 10, "c2": 10}
    last = None
    for _ in range(rng.randint(3, 8)):
        what = rng.random()
        if last is not None and what < 0.08:
            yield last
            continue
        call = "c1" if rng.random() < 0.8 else "c2"
        cseq[call] += -1 if rng.random() < 0.06 else 0 if rng.random() < 0.04 else rng.randint(1, 3)
        seconds = lambda: rng.choice([None, None, 0, 30, 60, 61, 600, 3600, 7200, 86400, 100000, 4294967295])  # noqa: E731
        if what < 0.16:
            last = Step(call, cseq[call], [], rng.choice([0, 0, 0, None, 60]), star=True)
            if rng.random() < 0.2:
                last.contacts = [(URIS[0][0], None, None)]
        elif what < 0.24:
            last = Step(call, cseq[call], [], None)
        else:
            some = rng.sample(range(len(URIS)), rng.choice([1, 1, 1, 1, 2, 2, 3]))
            contacts = [(rng.choice(URIS[i]) if spellings else URIS[i][0], seconds(), rng.choice(Q)) for i in some]
            last = Step(call, cseq[call], contacts, rng.choice([None, None, 0, 300, 3600]))
        yield last


class Peer:
    """One server, over one socket."""

    def __init__(self, port):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.settimeout(2)
        self.own = self.socket.getsockname()[1]
        self.number = 0

    def ask(self, step, aor):
        """(status, {uri: (seconds, q)})"""
        self.number += 1
        self.socket.send(step.text(aor, self.own, self.number))
        answer = self.socket.recv(65535).decode()
        assert f"z9hG4bK{aor}{self.number};" in answer or f"z9hG4bK{aor}{self.number}\r" in answer, answer
        contacts = {}
        for value in re.findall(r"^Contact: (.*?)\r$", answer, re.M):
            for uri, params in re.findall(r"<([^>]*)>((?:;[^,]*)?)", value):
                seconds = re.search(r"expires=(\d+)", params)
                q = re.search(r";q=([\d.]+)", params)
                contacts[uri] = (int(seconds.group(1)), float(q.group(1)) if q else None)
        return int(answer.split()[1]), contacts


def group(uri):
    return next(i for i, same in enumerate(URIS) if uri in same)


def alike(ours, theirs):
    """Equal but for the second that may have passed between the two."""
    return ours.keys() == theirs.keys() and all(abs(ours[u][0] - theirs[u][0]) <= 1 and ours[u][1] == theirs[u][1] for u in ours)


def spelled_twice(history, _answers, _states):
    seen = {}
    for step in history:
        for uri, _, _ in step.contacts:
            if seen.setdefault(group(uri), uri) != uri:
                return True
    return False


def out_of_order(history, answers, states):
    """Both refuse and change nothing; the statuses differ."""
    step = history[-1]
    older = any(other.call == step.call and other.cseq > step.cseq for other in history[:-1])
    return older and [status for status, _ in answers] == [500, 400] and alike(*states)


def star_again(history, answers, states):
    """Theirs removed all, ours refused."""
    step = history[-1]
    not_higher = any(other.call == step.call and other.cseq >= step.cseq for other in history[:-1])
    return step.star and not_higher and [status for status, _ in answers] == [500, 200] and not states[1]


def q_of_a_removed_one(history, _answers, states):
    """Nothing but q differs, and before the contact that has another's q stood one that was to be removed."""
    step = history[-1]
    ours, theirs = states
    if ours.keys() != theirs.keys() or any(abs(ours[u][0] - theirs[u][0]) > 1 for u in ours):
        return False
    zeros = [i for i, (_, seconds, _) in enumerate(step.contacts) if (step.expires if seconds is None else seconds) == 0]
    return bool(zeros) and any(i > zeros[0] for i, (uri, _, _) in enumerate(step.contacts) if ours.get(uri) != theirs.get(uri))


# What docs/differences.md explains, in its words; each with how it is told from the steps so far and what came of the last.
REASONS = [
    ("equal URIs", spelled_twice),
    ("out of order", out_of_order),
    ("star out of order", star_again),
    ("q of a removed contact", q_of_a_removed_one),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--port", type=int, default=24430)
    parser.add_argument("--show", type=int, default=5, help="differences without a reason that are printed")
    parser.add_argument("--samples", type=int, default=0, help="differences of each reason that are printed")
    args = parser.parse_args()
    if not kamailio():
        print("SKIPPED differential: Kamailio is not installed (apt-get install kamailio kamailio-mysql-modules); nothing was compared")
        return 0
    folder = os.path.join(ROOT, "target/bench/differential")
    shutil.rmtree(folder, ignore_errors=True)
    theirs_server = Kamailio(os.path.join(folder, "kamailio"), args.port, None)
    ours_server = Partyline(os.path.join(folder, "partyline"), args.port + 1, None)
    print(f"seed {args.seed}")
    rng = random.Random(args.seed)
    reasons, unexplained, done, same = Counter(), 0, 0, 0
    try:
        theirs_server.start("memory", "memory:", registrar=f'modparam("registrar", "max_contacts", {MAX_CONTACTS})\n'
                            'modparam("registrar", "retry_after", 10)')  # fmt: skip
        ours_server.start("memory", "memory:", [f"contacts.max={MAX_CONTACTS}", "expires.brief=raise"])
        theirs, ours = Peer(args.port), Peer(args.port + 1)
        for n in range(args.sequences):
            aor, history = f"s{n:04d}", []
            for step in steps(rng):
                history.append(step)
                answers = [peer.ask(step, aor) for peer in (ours, theirs)]
                query = Step("query", len(history), [], None)
                states = [peer.ask(query, aor)[1] for peer in (ours, theirs)]
                done += 1
                if answers[0][0] == answers[1][0] and alike(*states):
                    same += 1
                    continue
                reason = next((name for name, told in REASONS if told(history, answers, states)), None)
                if reason is not None:
                    reasons[reason] += 1
                unexplained += reason is None
                if (unexplained if reason is None else reasons[reason]) <= (args.show if reason is None else args.samples):
                    print(f"\nDIFFERENT {aor}: {reason or 'nobody knows why'}")
                    for h in history:
                        print(f"  {h}")
                    print(f"  ours   {answers[0][0]} {states[0]}\n  theirs {answers[1][0]} {states[1]}")
                break
    finally:
        ours_server.stop()
        theirs_server.stop()
    print(f"{args.sequences} sequences, {done} steps, {same} alike")
    for name, count in reasons.most_common():
        print(f"  {count:4} differ as docs/differences.md says: {name}")
    print(f"figure reg_differential_unexplained {unexplained} sequences")
    return 1 if unexplained or same < done // 2 else 0


if __name__ == "__main__":
    sys.exit(main())
