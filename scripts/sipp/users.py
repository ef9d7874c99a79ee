#!/usr/bin/env python3
"""Users for the scenarios in this folder.

    users.py csv 5000                 SEQUENTIAL, then one line per user: user;domain;   (register.xml)
    users.py csv 5000 --digest        the same with the credentials that register_digest.xml answers a challenge with
    users.py sql 5000                 INSERTs into subscriber with password, ha1 and ha1b, for sqlite3 or mariadb

A user's password is "secret-" and its name. sipp does not look for a [field] inside [authentication ...], so the whole
keyword stands in the CSV.
"""

import argparse
import hashlib
import sys


def md5(text):
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("csv", "sql"))
    parser.add_argument("count", type=int)
    parser.add_argument("--domain", default="example.org")
    parser.add_argument("--realm", help="of the digests; default: the domain")
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--first", type=int, default=0, help="number of the first user, for a second generator with others")
    options = parser.parse_args()
    realm = options.realm or options.domain
    users = [f"u{number:06d}" for number in range(options.first, options.first + options.count)]
    out = sys.stdout
    if options.what == "csv":
        out.write("SEQUENTIAL\n")
        for user in users:
            credentials = f"[authentication username={user} password=secret-{user}];" if options.digest else ""
            out.write(f"{user};{options.domain};{credentials}\n")
        return
    for at in range(0, len(users), 500):
        rows = []
        for user in users[at : at + 500]:
            password = f"secret-{user}"
            ha1, ha1b = md5(f"{user}:{realm}:{password}"), md5(f"{user}@{options.domain}:{realm}:{password}")
            rows.append(f"('{user}','{options.domain}','{password}','{ha1}','{ha1b}')")
        out.write("INSERT INTO subscriber (username, domain, password, ha1, ha1b) VALUES " + ",\n".join(rows) + ";\n")


if __name__ == "__main__":
    main()
