"""LangGraph's own test suites of its stores, unmodified, on ours.

They come from the source distributions of the installed versions, downloaded once into ``.cache``, and run in a process
of their own: ``suites/bound_stores.py`` puts our store where they expect theirs, and says what is skipped and why.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support.server import ROOT, child_environment

PLUGINS: Final = ROOT / "tests" / "integrations" / "suites"
CACHE: Final = ROOT / ".cache" / "langgraph-suites"
SETTINGS: Final = """[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = default
addopts = -p no:cacheprovider
"""


class Suite(NamedTuple):
    """Some files of a distribution's tests, and how many cases have to pass and may be skipped on each backend.

    ``soaked`` is how many of the embedded ones take long and run with --soak.
    """

    distribution: str
    files: tuple[str, ...]
    embedded: tuple[int, int]
    http: tuple[int, int]
    soaked: int = 0


SUITES: Final = {
    "memory": Suite("langgraph-checkpoint", ("test_store.py",), (117, 0), (117, 0)),
    "sqlite": Suite(
        "langgraph-checkpoint-sqlite", ("test_store.py", "test_async_store.py", "test_ttl.py"), (142, 11), (128, 25)
    ),
    "postgres": Suite(
        "langgraph-checkpoint-postgres", ("test_store.py", "test_async_store.py"), (273, 26), (263, 36), 3
    ),
}


def with_pip() -> str:
    """Return a Python that has pip: this one, or the one that made this environment without it."""
    for python in (sys.executable, getattr(sys, "_base_executable", sys.executable)):
        if not subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
            return python
    pytest.fail("no pip to download the suites with")


def downloaded(distribution: str) -> Path:
    """Return the folder of a distribution's sources, of the version that is installed."""
    version = importlib.metadata.version(distribution)
    folder = CACHE / f"{distribution.replace('-', '_')}-{version}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", distribution, "--dest", name]
        done = subprocess.run(
            [with_pip(), *command, f"{distribution}=={version}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            if os.environ.get("CI"):
                pytest.fail(f"{distribution} could not be downloaded:\n{done.stderr}")
            pytest.skip(f"{distribution} could not be downloaded")
        [archive] = Path(name).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(name, filter="data")
        (Path(name) / folder.name).rename(folder)
    return folder


def run(suite: Suite, name: str, folder: Path, **environment: str) -> tuple[dict[str, Any], str]:
    """Run a suite and return its counts and what pytest printed."""
    sources = downloaded(suite.distribution)
    settings, report = folder / "pytest.ini", folder / "report.json"
    settings.write_text(SETTINGS)
    paths = [str(PLUGINS), str(ROOT / "integrations"), str(ROOT)]
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(sources), "-q", "--tb=short",
            "-p", "bound_stores", "-p", "no:langsmith_plugin", *(f"tests/{file}" for file in suite.files),
        ],
        cwd=sources,
        env=child_environment(
            **{**environment, "PYTHONPATH": os.pathsep.join(paths), "SUITE_NAME": name, "SUITE_REPORT": str(report)}
        ),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if not report.is_file():
        pytest.fail(f"the suite did not run:\n{done.stdout}\n{done.stderr}")
    return json.loads(report.read_text()), done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["embedded", "http"])
@pytest.mark.parametrize("name", SUITES)
def test_langgraphs_own_suite_passes(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, backend: str, soak: bool
) -> None:
    environment = {"SUITE_SOAK": "1"} if soak else {}
    if backend == "http":
        server = request.getfixturevalue("server")
        environment |= {"SUITE_URL": server.url, "SUITE_DATABASE": str(server.data)}
    suite = SUITES[name]
    report, printed = run(suite, name, tmp_path, **environment)
    counts = report["counts"]
    passed, skipped = suite.embedded if backend == "embedded" else suite.http
    left = suite.soaked if backend == "embedded" and not soak else 0

    assert not counts.get("failed"), printed[-6_000:]
    assert (counts["passed"], counts.get("skipped", 0)) == (passed - left, skipped + left), re.sub(
        r"\n.*%\]", "", printed
    )[-3_000:]
