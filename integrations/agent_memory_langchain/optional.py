"""Keeping the arguments of tools optional with OpenAI's models.

In strict mode a model has to send every argument of a tool, and an update that sends every field overwrites with null,
or with what the model thought up, all that nobody wanted to change. The Responses API takes a tool as strict that does
not say otherwise, and for a structured answer of the provider's own kind LangChain makes all tools strict.
https://platform.openai.com/docs/guides/function-calling#strict-mode
"""

from __future__ import annotations

from typing import Any, cast

from langchain.agents.middleware import ModelRequest
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy

from agent_memory import InvalidRequestError


def with_optional_arguments(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """Return the request so that OpenAI's models need not send every argument; raise InvalidRequestError if they must.

    A structured answer whose kind was left to LangChain then comes by a tool, as with models that know no other kind.
    """
    if not _is_openai(request.model) or not request.tools:
        return request
    answer = cast(Any, request.response_format)
    if request.model_settings.get("strict") or isinstance(answer, ProviderStrategy):
        raise InvalidRequestError(
            "strict tools and ProviderStrategy make OpenAI's models send every field of an update, also those that are "
            "not to change: leave strict out, and use response_format=ToolStrategy(…)"
        )
    settings = {**request.model_settings, "strict": False}
    if answer is not None and not isinstance(answer, ToolStrategy):
        schema = getattr(answer, "schema", answer)
        if isinstance(schema, dict) and "title" not in schema:
            raise InvalidRequestError("the schema in response_format= needs a title: its answers come by a tool")
        answer = ToolStrategy(cast(Any, schema))
    return request.override(model_settings=settings, response_format=answer)


def _is_openai(model: Any) -> bool:
    """Say whether a model speaks OpenAI's protocol by langchain-openai, as all that have this setting do.

    What binds a model, falls back from it or configures it for each run is no such model, and shows its settings.
    """
    return hasattr(model, "use_responses_api")
