#!/usr/bin/env python3
"""Sends HTTP requests, a new connection each, and counts who answered.

It is told on standard input when a phase is over: each line is that phase's name, and makes it
print one row of the table. A request belongs to the phase in which it began. The exit status is 1
if no request was answered.
"""

import argparse
import collections
import http.client
import sys
import threading
import time
import urllib.parse

CLIENTS = 8
PAUSE_S = 0.01  # between two requests of a client: the machine has other things to do as well
TIMEOUT_S = 5.0
FAILED = "failed"


class Phase:
    """What happened to the requests that began in one phase."""

    def __init__(self):
        self.answers = collections.Counter()
        self.open = 0


class Load:
    """Clients that send requests until they are told to stop."""

    def __init__(self, url):
        self.url = urllib.parse.urlsplit(url)
        self.phase = Phase()
        self.running = True
        self.changed = threading.Condition()
        self.clients = [threading.Thread(target=self.client, daemon=True) for _ in range(CLIENTS)]
        for client in self.clients:
            client.start()

    def client(self):
        while self.running:
            with self.changed:
                phase = self.phase
                phase.open += 1
            answer = self.request()
            with self.changed:
                phase.answers[answer] += 1
                phase.open -= 1
                self.changed.notify_all()
            time.sleep(PAUSE_S)

    def request(self):
        """The name of the server that answered, or FAILED."""
        connection = http.client.HTTPConnection(
            self.url.hostname, self.url.port, timeout=TIMEOUT_S
        )
        try:
            connection.request("GET", self.url.path or "/")
            response = connection.getresponse()
            name = response.read().decode().strip()
            return name if response.status == http.client.OK else FAILED
        except (OSError, http.client.HTTPException):
            return FAILED
        finally:
            connection.close()

    def end_phase(self):
        """Begins another phase; returns the answers of the one before, when all have come."""
        with self.changed:
            phase, self.phase = self.phase, Phase()
            self.changed.wait_for(lambda: phase.open == 0)
        return phase.answers

    def stop(self):
        self.running = False
        for client in self.clients:
            client.join()


def row(name, cells):
    print(f"  {name:<26}" + "".join(f"{cell:>9}" for cell in cells), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="what to request; the answer is to be the server's name")
    parser.add_argument("servers", nargs="+", help="names of the servers: the columns")
    args = parser.parse_args()

    load = Load(args.url)
    total = collections.Counter()
    row("", [*args.servers, "requests", FAILED])
    for line in sys.stdin:
        answers = load.end_phase()
        total += answers
        answered = answers.total() - answers[FAILED]
        shares = [
            f"{answers[server] / answered:.1%}" if answers[server] else "-"
            for server in args.servers
        ]
        row(line.strip(), [*shares, answers.total(), answers[FAILED]])
    load.stop()

    strangers = set(total) - {*args.servers, FAILED}
    if strangers:
        print(f"  answers from unknown servers: {', '.join(sorted(strangers))}")
    return 0 if total.total() > total[FAILED] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
