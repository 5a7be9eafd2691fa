"""Notes that are found again by what they are about: each is stored in one write with a vector of its text.

The keys are those of the collection ``Note``: the notes are listed like any other items, and a search looks at nothing
but the keys of its user.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from typing import Final

from langchain_core.embeddings import Embeddings

from agent_memory import AgentMemory, item_id
from agent_memory.operations import Set

from .models import Note

SIMILAR: Final = 0.15
"""Cosine similarity from which on a note counts as being about something; unrelated texts stay below 0.1."""


class HashingEmbedding(Embeddings):
    """Vectors by feature hashing: of words, and of three-letter pieces of words. No model, nothing to download.

    Texts are alike if they share words, or words of one stem (knee, knees). It knows no meanings: for "leg" it does not
    find a knee. Give ``keep_note`` and ``recall_notes`` any other ``Embeddings`` for that.
    """

    def __init__(self, dimensions: int = 1024) -> None:
        self._dimensions = dimensions

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text: of length one, or zero if there is no word in it."""
        vector = [0.0] * self._dimensions
        for word in re.findall(r"\w+", text.casefold()):
            framed = f"<{word}>"
            if len(word) < 4:  # my, the, for: they say little, and their pieces nothing
                features = {framed: 0.3}
            else:
                pieces = dict.fromkeys(framed[at : at + 3] for at in range(len(framed) - 2))
                features = {framed: 1.0, **dict.fromkeys(pieces, 1 / math.sqrt(len(pieces)))}
            for feature, weight in features.items():
                number = int.from_bytes(hashlib.sha256(feature.encode()).digest()[:8], "big")
                vector[(number >> 1) % self._dimensions] += weight if number & 1 else -weight
        length = math.hypot(*vector)
        return [one / length for one in vector] if length else vector


def keep_note(memory: AgentMemory, user: str, note: Note, embeddings: Embeddings) -> str:
    """Store a note of a user with its vector and return its id."""
    notes = memory.entity("user", user).collection(Note)
    name = item_id(note.when, str(uuid.uuid4()))
    [vector] = embeddings.embed_documents([note.text])
    memory.app_state.batch(
        [Set(notes.prefix + name, note, Note, expected=None, reason="a note was told", vectors=[vector])]
    )
    return name


def recall_notes(memory: AgentMemory, user: str, about: str, embeddings: Embeddings, *, limit: int = 3) -> list[Note]:
    """Return a user's notes about something, the most similar first."""
    vector = embeddings.embed_query(about)
    if not any(vector):
        return []
    prefix = memory.entity("user", user).collection(Note).prefix
    hits = memory.app_state.search(prefix, vector=vector, limit=limit)
    return [Note.model_validate(hit.value) for hit in hits if hit.score is not None and hit.score >= SIMILAR]
