"""Errors: the tree as drawn, facts as attributes, messages made from them."""

import inspect
import re
from pathlib import Path

import pytest

from models import errors
from models.errors import (
    ApiError,
    AppError,
    DeclarationError,
    PayloadError,
    PluginError,
    PromptUnknown,
    Reject,
    RequestError,
    Retry,
    SettingsError,
    StoreError,
)


def _drawn_tree() -> dict[str, str]:
    """Each class of the drawing in the module docstring with its parent."""
    parents: dict[str, str] = {}
    path = ["AppError"]
    for indent, name in re.findall(r"^    ([│ ]*)[├└]── (\w+)", inspect.getdoc(errors) or "", re.MULTILINE):
        path[len(indent) // 4 + 1 :] = [name]
        parents[name] = path[-2]
    return parents


def test_errors_form_the_tree_that_is_drawn() -> None:
    """The drawing names every class of the module below its one parent, and the tree has three levels at most."""
    classes = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, Exception)}
    assert _drawn_tree() == {name: cls.__mro__[1].__name__ for name, cls in classes.items() if cls is not AppError}
    assert all(len(cls.__mro__) <= len(AppError.__mro__) + 2 for cls in classes.values())


@pytest.mark.parametrize("delay_s", [None, 0, 0.5, 86_400])
def test_retry_keeps_its_delay(delay_s: float | None) -> None:
    """A delay from nothing to a day is taken, and none leaves it to the policy."""
    assert Retry("the calendar is down", delay_s).delay_s == delay_s


@pytest.mark.parametrize("delay_s", [-0.1, 86_400.5, float("nan"), float("inf")])
def test_retry_refuses_a_delay_beyond_a_day(delay_s: float) -> None:
    """A delay below zero, above a day or of no number is an error of the handler."""
    with pytest.raises(ValueError, match=f"delay_s: expected 0 to 86400 seconds, got {delay_s}"):
        Retry("down", delay_s)


def test_retry_without_a_reason_still_says_something() -> None:
    """The message is never empty, the reason is as given."""
    assert (str(Retry()), Retry().reason) == ("asked to be run again", "")
    assert (str(Retry("down")), Retry("down").reason) == ("down", "down")


def test_reject_carries_its_reason() -> None:
    """The reason is message and attribute, for a payload error too."""
    assert (str(Reject("no")), Reject("no").reason, PayloadError("a: missing").reason) == ("no", "no", "a: missing")


def test_declaration_error_names_place_and_problem() -> None:
    """The message is where, then the problem."""
    error = DeclarationError('table "x"', "name: bad")
    assert (str(error), error.where, error.problem) == ('table "x": name: bad', 'table "x"', "name: bad")


def test_plugin_error_names_plugin_file_and_line() -> None:
    """The message has the plugin, its file and line if there is one, and the problem."""
    error = PluginError("x", ("a/x.py", 7), "no")
    assert (str(error), error.plugin, error.where, error.problem) == (
        "plugin 'x' (a/x.py:7): no",
        "x",
        ("a/x.py", 7),
        "no",
    )
    assert str(PluginError("x", ("", 0), "no")) == "plugin 'x': no"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("x", "HTTP_PORT: expected a port, got 'x'", id="value"),
        pytest.param("", "HTTP_PORT: expected a port, got ''", id="empty"),
        pytest.param(None, "HTTP_PORT: expected a port", id="unknown-name"),
    ],
)
def test_settings_error_says_key_value_and_what_is_accepted(value: str | None, text: str) -> None:
    """The value is part of the message, an empty one too, unless there is none."""
    error = SettingsError("HTTP_PORT", value, "expected a port")
    assert (str(error), error.key, error.value, error.expected) == (text, "HTTP_PORT", value, "expected a port")


def test_store_error_names_the_path() -> None:
    """The message begins with the path."""
    error = StoreError(Path("var/state.db"), "is damaged")
    assert (str(error), error.path, error.problem) == ("var/state.db: is damaged", Path("var/state.db"), "is damaged")


def test_api_error_carries_the_servers_code() -> None:
    """The subject, the code and the server's words are attributes and message."""
    error = ApiError("STREAM.INFO.X", 10059, "stream not found")
    assert (str(error), error.subject) == ("STREAM.INFO.X: stream not found (10059)", "STREAM.INFO.X")
    assert (error.code, error.description) == (10059, "stream not found")


def test_request_error_carries_its_status() -> None:
    """The status and the detail are attributes, the detail is the message."""
    error = RequestError(422, "user_id: missing")
    assert (str(error), error.status, error.detail) == ("user_id: missing", 422, "user_id: missing")


def test_prompt_unknown_names_what_is_known() -> None:
    """The version that was asked for and those that there are, are attributes and message."""
    error = PromptUnknown("v9", ["v1", "v2"])
    assert (str(error), error.version, error.known) == (
        "prompt v9: there is no such variant, only v1, v2",
        "v9",
        ("v1", "v2"),
    )
    assert str(PromptUnknown("v9", [])) == "prompt v9: there is no such variant, only none"
