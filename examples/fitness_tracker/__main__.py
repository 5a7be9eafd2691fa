"""``python -m examples.fitness_tracker``."""

try:
    from .cli import main
except ModuleNotFoundError as error:
    raise ImportError(f"the fitness tracker needs {error.name}: pip install 'agent-memory[examples]'") from None

if __name__ == "__main__":
    raise SystemExit(main())
