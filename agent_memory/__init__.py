"""Typed, durable memory for agents: application state as one store per user, order or device."""

from .collections import AsyncCollection, Collection
from .context import AsyncRequestContext, RequestContext
from .documents import AsyncDocument, Document
from .entities import AsyncEntity, Entity
from .errors import (
    AgentMemoryError,
    AuthenticationError,
    ConflictError,
    DeserializationError,
    IntegrityError,
    InvalidKeyError,
    InvalidRequestError,
    LimitExceededError,
    NoRequestContextError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    SchemaError,
    SerializationError,
    TimedOutError,
    UnavailableError,
)
from .ids import item_id
from .maintenance import CheckReport, Problem
from .memory import AgentMemory, AsyncAgentMemory
from .messages import Entry
from .state import AsyncRequestState, AsyncState, RequestState, State
from .sweeping import SweepReport
from .values import Snapshot

__all__ = [
    "AgentMemory",
    "AgentMemoryError",
    "AsyncAgentMemory",
    "AsyncCollection",
    "AsyncDocument",
    "AsyncEntity",
    "AsyncRequestContext",
    "AsyncRequestState",
    "AsyncState",
    "AuthenticationError",
    "CheckReport",
    "Collection",
    "ConflictError",
    "DeserializationError",
    "Document",
    "Entity",
    "Entry",
    "IntegrityError",
    "InvalidKeyError",
    "InvalidRequestError",
    "LimitExceededError",
    "NoRequestContextError",
    "NotFoundError",
    "PermissionDeniedError",
    "Problem",
    "ProtocolError",
    "RequestContext",
    "RequestState",
    "SchemaError",
    "SerializationError",
    "Snapshot",
    "State",
    "SweepReport",
    "TimedOutError",
    "UnavailableError",
    "item_id",
]
