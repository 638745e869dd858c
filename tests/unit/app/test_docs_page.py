"""The page of an OpenAPI document: complete, escaped, with commands that a shell takes as they are."""

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.docs_page import content_security_policy, curl_line, mark_code, render_page, spell_limits, spell_type
from app.openapi import openapi_document
from app.operations import Answer, Body, Operation, Parameter
from models.events import TipRewarded

REWARD = {
    "user_id": "it's",
    "tip_id": "t",
    "request_id": "r",
    "reward": 0.5,
    "occurred_at": "2026-01-02T03:04:05Z",
}
OPERATION = Operation(
    method="POST",
    path="/rewards/{day}",
    tag="rewards",
    summary="Takes <b>one</b>",
    description="Of `today`.",
    parameters=(Parameter(name="day", description="Which.", example="1/2"),),
    body=Body(type=TipRewarded, example=REWARD),
    answers=(Answer(description="Taken.", status=202, type=TipRewarded, example=REWARD),),
)


def document(*, has_tokens: bool = False) -> dict[str, Any]:
    """A document of one operation."""
    return openapi_document([OPERATION], version="1.2.3", has_tokens=has_tokens)


class Page(HTMLParser):
    """The ids, the links inside and the names of all elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.elements: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element."""
        self.elements.add(tag)
        found = dict(attrs)
        self.ids |= {str(found["id"])} if "id" in found else set()
        if (link := found.get("href") or "").startswith("#"):
            self.links.add(link[1:])


@pytest.mark.parametrize("has_tokens", [False, True], ids=["open", "tokens"])
def test_page_has_every_operation_and_type_and_no_dead_link(has_tokens: bool) -> None:
    """Each link inside leads to an operation or a type that is on the page; the token is asked for where it counts."""
    text = render_page(document(has_tokens=has_tokens), "http://h")
    page = Page(text)
    assert page.links <= page.ids
    assert {"post_rewards_day", "type-TipRewarded", "type-ProblemDocument"} <= page.ids
    assert ("Authorization: Bearer TOKEN" in text) is has_tokens


def test_page_escapes_what_the_document_says() -> None:
    """A text is text, whatever is in it; code in backticks is marked up."""
    text = render_page(document(), 'http://h"><script>')
    assert "Takes &lt;b&gt;one&lt;/b&gt;" in text and "Of <code>today</code>." in text
    assert "<script" not in text


def test_page_loads_nothing_and_its_style_is_the_one_allowed() -> None:
    """There is no script, image or frame, and the policy names the hash of the style sheet as it stands there."""
    text = render_page(document(), "http://h")
    assert not Page(text).elements & {"script", "img", "iframe", "link", "form", "object"}
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert content_security_policy().startswith(f"default-src 'none'; style-src 'sha256-{digest}';")


def test_curl_line_is_taken_by_a_shell_as_it_is() -> None:
    """Quotes in the body and a slash in the path arrive at the server as the example has them."""
    made = document(has_tokens=True)["paths"]["/rewards/{day}"]["post"]
    words = shlex.split(curl_line("post", "/rewards/{day}", made, "http://h:1"))
    assert words[:3] == ["curl", "-X", "POST"] and words[-1] == "http://h:1/rewards/1%2F2"
    assert "Authorization: Bearer TOKEN" in words
    assert json.loads(words[words.index("-d") + 1]) == REWARD


@pytest.mark.parametrize(
    ("schema", "spelled", "limits"),
    [
        pytest.param({"type": "number", "minimum": 0}, "number", "at least 0", id="number"),
        pytest.param({"type": "string", "format": "date-time"}, "date-time", "", id="format"),
        pytest.param({}, "any JSON", "", id="anything"),
        pytest.param({"type": "string", "pattern": "^a$"}, "string", "matches ^a$", id="pattern"),
        pytest.param({"enum": ["a", 1], "default": 1}, "<code>&#34;a&#34;</code> or <code>1</code>", "1 when left out"),
        pytest.param({"type": "array", "items": {"type": "null"}, "maxItems": 2}, "array of null", "at most 2 items"),
        pytest.param({"type": "object", "additionalProperties": {}}, "object, each value any JSON", "", id="object"),
        pytest.param(
            {"anyOf": [{"$ref": "#/components/schemas/A"}, {"type": "integer", "maximum": 3}]},
            '<a href="#type-A">A</a> or integer',
            "at most 3",
            id="either",
        ),
    ],
)
def test_page_spells_types_in_words(schema: dict[str, Any], spelled: str, limits: str) -> None:
    """A type is what a person would call it, with its limits beside it."""
    assert (spell_type(schema), spell_limits(schema)) == (spelled, limits)


@given(st.text(alphabet="`<>&ab"))
def test_page_marks_up_code_and_nothing_else(text: str) -> None:
    """Of any text nothing but the elements of its code is markup."""
    assert Page(str(mark_code(text))).elements <= {"code"}
    assert "<" not in mark_code(text).replace("<code>", "").replace("</code>", "")
