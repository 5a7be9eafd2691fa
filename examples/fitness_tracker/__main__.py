"""``python -m examples.fitness_tracker``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
