"""The OpenAPI document as a page for people: one HTML file without a script, rendered here.

This module owns how a document is shown. Shipping a component that draws the document in the browser was refused: it
is more than a megabyte of scripts in every installation, and can't run under a policy that forbids scripts. What a
text of the document holds is text: only ``code`` in backticks is marked up, after everything else is escaped.
"""

import base64
import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from app.openapi_schemas import Json

_CODE = re.compile(r"(`+)(.+?)\1")
_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
    "default": "{} when left out",
}


def render_page(document: Json, origin: str) -> str:
    """Renders the page.

    Args:
        origin: scheme, host and port that the examples call.
    """
    operations = [
        {"method": method.upper(), "path": path, "curl": curl_line(method, path, found, origin)} | found
        for path, methods in document["paths"].items()
        for method, found in methods.items()
    ]
    tags = {tag["name"]: [one for one in operations if tag["name"] in one["tags"]] for tag in document["tags"]}
    template = _environment().get_template("docs.html.j2")
    return template.render(document=document, tags=tags, origin=origin, style=Markup(_style()))


@functools.cache
def content_security_policy() -> str:
    """The policy of the page: its own style sheet, known by its hash, and nothing else from anywhere."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    refused = "; ".join(f"{directive} 'none'" for directive in ("base-uri", "form-action", "frame-ancestors"))
    return f"default-src 'none'; style-src 'sha256-{digest}'; {refused}"


def curl_line(method: str, path: str, operation: Json, origin: str) -> str:
    """A command that calls an operation with the examples of the document, ready for a shell."""
    examples = {one["name"]: str(one.get("example", one["name"])) for one in operation.get("parameters", ())}
    filled = re.sub(r"\{(\w+)\}", lambda name: quote(examples.get(name[1], name[1]), safe=""), path)
    words = ["curl"] if method == "get" else ["curl", "-X", method.upper()]
    if operation.get("security"):
        words += ["-H", "Authorization: Bearer TOKEN"]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        body = json.dumps(content["example"], ensure_ascii=False)
        words += ["-H", f"Content-Type: {media_type}", "-d", body]
    return shlex.join([*words, origin + filled])


def spell_type(schema: Json) -> Markup:
    """A schema's type in a few words, with links to the types that have a name."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return Markup('<a href="#type-{0}">{0}</a>').format(name)
    if "anyOf" in schema:
        return Markup(" or ").join(spell_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return Markup(" or ").join(Markup("<code>{}</code>").format(json.dumps(one)) for one in schema["enum"])
    if schema.get("type") == "array":
        return Markup("array of {}").format(spell_type(schema.get("items", {})))
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return Markup("object, each value {}").format(spell_type(schema["additionalProperties"]))
    return escape(schema.get("format") or schema.get("type", "any JSON"))


def spell_limits(schema: Json) -> str:
    """What a value must keep to, beside its type."""
    return ", ".join(_limits(schema))


def mark_code(text: str) -> Markup:
    """A text with its ``code`` marked up, and all else escaped."""
    return Markup(_CODE.sub(r"<code>\2</code>", str(escape(text))))


def _limits(schema: Json) -> Iterator[str]:
    for word, text in _LIMITS.items():
        if word in schema:
            value = schema[word]
            yield text.format(value if word == "pattern" else json.dumps(value))
    for one in schema.get("anyOf", ()):
        yield from _limits(one)


def _pretty(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _environment() -> jinja2.Environment:
    """What is undefined is empty, for most keys of a document may be left out."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("app"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(code=mark_code, spelled=spell_type, limits=spell_limits, pretty=_pretty)
    return environment


@functools.cache
def _style() -> str:
    return _environment().get_template("docs.css.j2").render()
