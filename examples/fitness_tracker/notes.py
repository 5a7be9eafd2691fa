"""Notes that are found again by what they are about: each is stored in one write with a vector of its text.

The keys are those of the collection ``Note``: the notes are listed like any other items, and a search looks at nothing
but the keys of its user.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import uuid
from functools import lru_cache
from pathlib import Path

from langchain_core.embeddings import Embeddings

from agent_memory import AgentMemory, item_id
from agent_memory.operations import Set

from .models import Note


class NoteEmbedding(Embeddings):
    """An embedding, and from which cosine similarity on a note counts as being about something."""

    similar: float


class WordEmbedding(NoteEmbedding):
    """Vectors of meaning by WordLlama, whose model of 16 MB comes with its package: nothing is downloaded.

    A text's vector is the mean of its words': "cycling" finds a bike, "leg pain" a knee, in whatever order they stand.
    """

    similar = 0.3  # measured on a dozen notes: related ones from 0.37 on, unrelated ones up to 0.23

    def __init__(self) -> None:
        root, quiet = logging.getLogger(), logging.NullHandler()
        # Importing it makes the whole process log to the terminal, unless there is a handler already.
        root.addHandler(quiet)
        try:
            import wordllama
        finally:
            root.removeHandler(quiet)
        # Version 0.4.0 looks for its own tokenizer in a folder that it does not have, and then here.
        folder = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each text: of length one, or zero if there is no word in it."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text: of length one, or zero if there is no word in it."""
        vector: list[float] = self._model.embed(" ".join(re.findall(r"\w+", text.casefold()))).tolist()[0]
        length = math.hypot(*vector)
        return [one / length for one in vector] if length else vector


class HashingEmbedding(NoteEmbedding):
    """Vectors by feature hashing: of words, and of three-letter pieces of words. For where WordLlama is not installed.

    Texts are alike if they share words, or words of one stem (knee, knees). It knows no meanings: for "leg" it does not
    find a knee.
    """

    similar = 0.15  # unrelated texts stay below 0.1

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


@lru_cache(maxsize=1)
def note_embedding() -> NoteEmbedding:
    """Return WordLlama's embedding; where there is no wheel of it, the one that hashes."""
    try:
        return WordEmbedding()
    except ImportError:
        return HashingEmbedding()


def keep_note(memory: AgentMemory, user: str, note: Note, embeddings: NoteEmbedding) -> str:
    """Store a note of a user with its vector and return its id."""
    notes = memory.entity("user", user).collection(Note)
    name = item_id(note.when, str(uuid.uuid4()))
    [vector] = embeddings.embed_documents([note.text])
    memory.app_state.batch(
        [Set(notes.prefix + name, note, Note, expected=None, reason="a note was told", vectors=[vector])]
    )
    return name


def recall_notes(
    memory: AgentMemory, user: str, about: str, embeddings: NoteEmbedding, *, limit: int = 3
) -> list[Note]:
    """Return a user's notes about something, the most similar first."""
    vector = embeddings.embed_query(about)
    if not any(vector):
        return []
    prefix = memory.entity("user", user).collection(Note).prefix
    hits = memory.app_state.search(prefix, vector=vector, limit=limit)
    return [Note.model_validate(hit.value) for hit in hits if hit.score is not None and hit.score >= embeddings.similar]
