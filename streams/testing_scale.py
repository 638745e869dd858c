"""Policies in another time: copies of subject tables whose waits are multiplied, so that hours pass in milliseconds."""

import copy
import functools
from typing import Any

import attrs

from models.errors import Retry
from streams.context import Context
from streams.policy import Policy
from streams.subjects import Handler, HandlerFunction, SubjectTable

LEAST_TIMEOUT_S = 1.0
"""An attempt gets this long, or what its policy says if that is less: its code does not run faster in a test."""


class _Hurried:
    """A handler's function whose ``Retry(delay_s=…)`` waits are multiplied; in tracebacks it stays the handler's."""

    def __init__(self, function: HandlerFunction, scale: float) -> None:
        functools.update_wrapper(self, function)
        self._function, self._scale = function, scale
        self.__code__ = getattr(function, "__code__", None)

    async def __call__(self, event: Any, ctx: Context) -> None:
        try:
            await self._function(event, ctx)
        except Retry as error:
            if isinstance(getattr(error, "delay_s", None), int | float) and error.delay_s:
                error.delay_s *= self._scale
            raise


def scaled_table(table: SubjectTable, scale: float) -> SubjectTable:
    """A copy of a subject table with every wait of its policies multiplied; timers fire as they did.

    Its handlers run in this process, also those with ``isolate="process"``: another process would find the original.
    """
    if scale == 1:
        return table
    result = copy.copy(table)
    result.handlers = [_scaled_handler(handler, scale) for handler in table.handlers]
    return result


def _scaled_handler(handler: Handler, scale: float) -> Handler:
    return attrs.evolve(
        handler, policy=scaled_policy(handler.policy, scale), function=_Hurried(handler.function, scale)
    )


def scaled_policy(policy: Policy, scale: float) -> Policy:
    """A policy with its waits multiplied."""
    return attrs.evolve(
        policy,
        backoff_s=tuple(delay_s * scale for delay_s in policy.backoff_s),
        retry_for_s=policy.retry_for_s * scale,
        timeout_s=max(policy.timeout_s * scale, min(policy.timeout_s, LEAST_TIMEOUT_S)),
        isolate=None,
    )


def in_this_process(table: SubjectTable) -> SubjectTable:
    """The table, or a copy of it in which no handler wants a process of its own."""
    if not any(handler.policy.isolate for handler in table.handlers):
        return table
    result = copy.copy(table)
    result.handlers = [
        attrs.evolve(handler, policy=attrs.evolve(handler.policy, isolate=None)) for handler in table.handlers
    ]
    return result
