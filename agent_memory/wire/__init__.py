"""Messages and errors as HTTP bodies, in both directions, so that the client and the server cannot drift apart."""

from .bodies import BODY_LIMIT, LOGGED_ID, VERBS
from .parsing import parts_of
from .problems import decode_error, encode_error
from .replies import decode_reply, encode_reply
from .requests import decode_request, encode_request

__all__ = [
    "BODY_LIMIT",
    "LOGGED_ID",
    "VERBS",
    "decode_error",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_reply",
    "encode_request",
    "parts_of",
]
