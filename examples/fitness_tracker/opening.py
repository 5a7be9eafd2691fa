"""Opening the memory that the options of a command name."""

from __future__ import annotations

import argparse
from typing import Final

from agent_memory import AgentMemory, UnavailableError

from .models import UnusableError

ANSWER_SECONDS: Final = 4.0
"""How long a server may take to show that it is there."""


def open_memory(options: argparse.Namespace) -> AgentMemory:
    """Open the store that the options name: a file, or a server's URL.

    Raises UnusableError if no server answers there, which a call by itself would find out in half a minute.
    """
    if not options.url:
        return AgentMemory(options.data, application=options.application, namespace=options.namespace)
    scope = {"application": options.application, "namespace": options.namespace, "token": options.token}
    with AgentMemory(options.url, timeout=ANSWER_SECONDS, **scope) as memory:
        try:
            next(memory.app_state.keys(), None)
        except UnavailableError as error:
            if error.code not in ("no_answer", "timeout"):  # a server that says itself what is wrong
                raise
            raise UnusableError(f"nothing answers at {options.url}") from None
    return AgentMemory(options.url, **scope)
