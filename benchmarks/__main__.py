"""Run benchmarks and print a table each: ``make bench``, or ``make bench ARGS="embedded http"`` for some of them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Final

_ALL: Final = ("embedded", "http", "langgraph_store", "postgres_store", "workers", "object_store")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*_ALL, []], metavar="NAME", help=f"of {', '.join(_ALL)}")
    for name in parser.parse_args().names or _ALL:
        # Each in a process of its own, so that none warms or crowds another.
        subprocess.run([sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}"], check=True)
        print(flush=True)


if __name__ == "__main__":
    main()
