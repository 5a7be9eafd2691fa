"""The code in the documents runs, and a type checker takes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent_memory import replies
from agent_memory.checks import MAX_DIMENSIONS, MAX_PATTERNS, MAX_PROVENANCE_BYTES, MAX_VECTORS
from agent_memory.filters import MAX_DEPTH, MAX_FIELD_CHARACTERS, MAX_TERMS
from agent_memory.keys import MAX_KEY_BYTES
from agent_memory.messages import BATCH_INLINE_LIMIT, INLINE_LIMIT, MAX_VALUE_BYTES, PAGE_LIMIT
from agent_memory.server import connections
from agent_memory.storage.blobs import MAX_CHUNKS, URL_SECONDS
from agent_memory.storage.finding import FILTER_LIMIT, READ_LIMIT
from agent_memory.uploads import MIN_CHUNK_BYTES
from agent_memory.wire import BODY_LIMIT, parsing
from agent_memory.wire.bodies import VERBS
from agent_memory.wire.problems import _CODES
from tests.support.server import ROOT, WARNINGS_ARE_ERRORS

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks() -> dict[str, str]:
    """Find the blocks marked ``python``; those marked ``py`` are fragments."""
    found: dict[str, str] = {}
    for document in DOCUMENTS:
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", document.read_text(), re.M | re.S), 1):
            found[f"{document.stem}_{number}"] = block
    return found


BLOCKS = code_blocks()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_code_block_runs_as_it_stands(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *WARNINGS_ARE_ERRORS, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_type_checker_takes_the_code_blocks_as_they_stand(tmp_path: Path) -> None:
    for name, block in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *tmp_path.iterdir()],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_within_the_repository_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_of_a_request_stands_in_the_protocol_beside_its_verb(verb: str) -> None:
    row = re.search(rf"^\| `{verb}` \| (.*?) \|", (ROOT / "docs" / "protocol.md").read_text(), re.M)
    assert row is not None
    beside = {"request_id", "allocation_id"}  # in every request, and said above the table

    assert set(VERBS[verb].request.json_schema()["properties"]) <= {*re.findall(r"`(\w+)", row[1]), *beside}


def test_the_protocol_names_the_verbs_that_no_batch_takes() -> None:
    row = re.search(r"^\| `batch` \| .*but for (.*?) \|", (ROOT / "docs" / "protocol.md").read_text(), re.M)
    assert row is not None
    taken = VERBS["batch"].request.json_schema()["properties"]["operations"]["items"]["discriminator"]["mapping"]

    assert {*re.findall(r"`(\w+)`", row[1])} == VERBS.keys() - taken.keys() - {"batch"}


def test_every_code_of_a_refused_request_stands_in_the_protocol_beside_its_status() -> None:
    table = re.findall(r"^\| (\d{3}[\d, ]*) \| (.*) \|$", (ROOT / "docs" / "protocol.md").read_text(), re.M)
    told = {
        (int(status), code) for row in table for status in row[0].split(", ") for code in re.findall(r"`(\w+)`", row[1])
    }
    # A client raises these before it asks.
    never_answered = {"serialization", "no_request_context", "not_found"}
    answered = {
        (kind.status, code) for code, kind in _CODES.items() if kind.status < 500 and code not in never_answered
    }

    assert answered <= told


LIMITS = [
    f"`request_id` are 1 to {MAX_KEY_BYTES:,} bytes",
    f"`limit` is 1 to {PAGE_LIMIT:,}",
    f"There are up to {MAX_PATTERNS}, and all must fit",
    f"find up to {READ_LIMIT >> 20} MiB",
    f"names up to {replies._MOST_CHUNKS:,} chunks",
    f"{BODY_LIMIT >> 20} MiB and {parsing._MOST_PARTS:,} commas",
    f"{connections._HEAD_BYTES >> 10} KiB and {connections._MOST_HEADERS} headers",
    f"one chunk of at most {INLINE_LIMIT >> 10} KiB",
    f"up to {BATCH_INLINE_LIMIT >> 20} MiB in all",
    f"good for {URL_SECONDS} seconds",
    f"up to {MAX_VALUE_BYTES >> 30} GiB",
    f"({MIN_CHUNK_BYTES >> 10} KiB or more, at most {MAX_CHUNKS:,} chunks)",
    f"texts, {MAX_PROVENANCE_BYTES:,} bytes in all",
    f"1 to {MAX_DIMENSIONS:,} little-endian",
    f"up to {MAX_VECTORS} `vectors`",
    f"up to {MAX_DEPTH} deep, with {MAX_TERMS} comparisons and parts, {MAX_TERMS} values",
    f"up to {MAX_FIELD_CHARACTERS:,} characters",
    f"no value above {FILTER_LIMIT >> 20} MiB",
]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_stands_in_the_protocol_as_it_is(limit: str) -> None:
    assert limit in " ".join((ROOT / "docs" / "protocol.md").read_text().split())
