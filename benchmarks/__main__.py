"""Run every benchmark and print one table each: ``make bench``."""

from __future__ import annotations

from benchmarks import embedded, http
from benchmarks.harness import table


def main() -> None:
    print(table("An embedded store", embedded.compare()), flush=True)
    rows, counts = http.compare()
    print()
    print(table("Over HTTP, servers in processes of their own", rows))
    print("\n".join(counts))


if __name__ == "__main__":
    main()
