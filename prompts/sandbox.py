"""What the text of a variant may do: fill in its variables, in a sandbox, and within a limit when it is tried out.

A template has no global names, reaches nothing of the process, and can't multiply texts or lists. ``limited`` ends one
that computes for too long. Which templates there are, and what fills them, is prompts/registry.py's business.
"""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.runtime
import jinja2.sandbox

_PADDING_METHODS = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"})
_LEFT_OUT_FILTERS = ("batch", "center", "format", "indent", "random", "slice")
"""Those that pad, and the one whose text is another one each time."""
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Refuses what makes a number in a file into as many characters: powers, repeated texts or lists, padding.

    Without an optimizer, which would carry such a thing out as soon as the file is looked at. A template can still
    double a text again and again, a line each time: who writes one is trusted not to.
    """

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """As the sandbox; only numbers are multiplied and divided."""
        if operator == "**" or not all(isinstance(value, int | float) for value in (left, right)):
            raise jinja2.exceptions.SecurityError(f"{operator!r} is for numbers, and there are no powers")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """No method that formats gets an exception from ``is_safe_attribute``."""
        return

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As the sandbox; a text pads and formats nothing."""
        return not (isinstance(obj, str) and attr in _PADDING_METHODS) and super().is_safe_attribute(obj, attr, value)


def sandbox() -> jinja2.Environment:
    """A sandbox without globals; ``json`` prints a value so that it stays on its line, whatever it holds."""
    environment = _Sandbox(
        undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, optimized=False
    )
    environment.globals.clear()
    for name in _LEFT_OUT_FILTERS:
        del environment.filters[name]
    environment.filters["json"] = _json
    return environment


def _json(value: object) -> str:
    """JSON without anything that ends a line, or that UTF-8 can't hold."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


@contextlib.contextmanager
def limited(filename: str, *, cpu_s: float) -> Iterator[None]:
    """Ends a template of that file that computes for longer: its line raises SecurityError.

    Counts the processor's time of this thread, so a busy machine makes nothing too slow. Each line of the template is
    looked at, which makes it several times slower: this is for trying out, and not for requests.
    """
    ends_at = time.thread_time() + cpu_s

    def look(frame: FrameType, event: str, _: object) -> Any:  # pragma: no cover (what traces is not traced)
        if frame.f_code.co_filename != filename:
            return None
        if event != "return" and time.thread_time() > ends_at:
            raise jinja2.exceptions.SecurityError(f"computes for longer than {cpu_s:g} s")
        return look

    with contextlib.ExitStack() as stack:
        stack.callback(sys.settrace, sys.gettrace())
        sys.settrace(look)
        yield
