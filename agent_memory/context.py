"""RequestContext: the request that is being served, with its own state and the application's.

A context is found from anywhere in the same thread or task. Threads and processes do not inherit it: hand the context
over, or run them in ``contextvars.copy_context()``. It can be pickled and reopens its memory in the child.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .checks import check_type
from .client import Client, OpenRequest, current_request
from .errors import NoRequestContextError
from .keys import check_request_id
from .messages import Scope
from .state import AsyncRequestState, AsyncState, RequestState, State

if TYPE_CHECKING:
    from .memory import AgentMemory, AsyncAgentMemory


class _Context:
    # With slots, `ctx.draft = 1` is an error and not lost.
    __slots__ = ("_bound", "_client", "request_id")

    def __init__(self, client: Client, request_id: str, bound: Mapping[str, str]) -> None:
        self._client = client
        self._bound = bound
        self.request_id = request_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.request_id!r})"

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self._client.scope.namespace

    @property
    def application(self) -> str:
        """The application whose state this is."""
        return self._client.scope.application

    def _request_scope(self) -> Scope:
        return self._client.scope._replace(request_id=self.request_id)


class RequestContext(_Context):
    """One request: ``state`` lives as long as the request, ``app_state`` and ``memory`` as long as the application.

    Everything written through a context carries the request's id as provenance, from any thread or process.
    """

    __slots__ = ()

    @staticmethod
    def get() -> RequestContext:
        """Return the context of the request that is open here; raise NoRequestContextError outside one."""
        return RequestContext(*_current())

    @property
    def state(self) -> RequestState:
        """The state of this request; swept seven days after its last write."""
        return RequestState(self._client, self._request_scope(), self._bound)

    @property
    def app_state(self) -> State:
        """The state of the application, shared by all its requests."""
        return State(self._client, self._client.scope, self._bound)

    @property
    def memory(self) -> AgentMemory:
        """The whole API."""
        from .memory import AgentMemory

        return AgentMemory.of(self._client, self._bound)

    @property
    def aio(self) -> AsyncRequestContext:
        """The async face of this context."""
        return AsyncRequestContext(self._client, self.request_id, self._bound)


class AsyncRequestContext(_Context):
    """The async face of ``RequestContext``."""

    __slots__ = ()

    @staticmethod
    def get() -> AsyncRequestContext:
        """Return the context of the request that is open here; raise NoRequestContextError outside one."""
        return AsyncRequestContext(*_current())

    @property
    def state(self) -> AsyncRequestState:
        """See ``RequestContext.state``."""
        return AsyncRequestState(self._client, self._request_scope(), self._bound)

    @property
    def app_state(self) -> AsyncState:
        """See ``RequestContext.app_state``."""
        return AsyncState(self._client, self._client.scope, self._bound)

    @property
    def memory(self) -> AsyncAgentMemory:
        """The whole API."""
        from .memory import AsyncAgentMemory

        return AsyncAgentMemory.of(self._client, self._bound)

    @property
    def sync(self) -> RequestContext:
        """The sync face of this context."""
        return RequestContext(self._client, self.request_id, self._bound)


def _current() -> tuple[Client, str, Mapping[str, str]]:
    current = current_request.get()
    if current is None:
        raise NoRequestContextError(
            "no request is open in this thread or task; enter memory.request(request_id) in it first"
        )
    return current.client, current.request_id, current.bound


@contextmanager
def open_request(client: Client, request_id: str, labels: Mapping[str, str]) -> Generator[None]:
    """Make a request the current one of this thread or task."""
    for name, label in labels.items():
        check_type(label, str, f"{name} is a str")
    outer = current_request.get()
    # A request within a request keeps what it does not say anew, such as the agent.
    bound = {**({} if outer is None else outer.bound), "request_id": check_request_id(request_id), **labels}
    request = OpenRequest(client, request_id, bound, outer)
    current_request.set(request)
    try:
        yield
    finally:
        _end(request)


def _end(request: OpenRequest) -> None:
    """Take a request out of those that are open here, whichever of them is the current one.

    Generators that stream answers end in any order, and may be closed in a context where their request is not open.
    """
    inner = current_request.get()
    if inner is request:
        current_request.set(request.outer)
        return
    while inner is not None and inner.outer is not request:
        inner = inner.outer
    if inner is not None:
        inner.outer = request.outer
