"""From the text of a setting to its value, and from the value to something a person may read.

This module owns what each kind of value accepts, and knows no setting by name. A parser takes text without spaces
around it and raises ValueError with what would be accepted; it never quotes what it was given, since that may be a
secret. app/settings.py declares which setting takes which parser.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from models.registry import NAME
from prompts.registry import VERSION

HIDDEN = "****"
NO_REGISTRY = "none"
SCOPES = ("docs", "feedback", "generate", "health", "metrics", "models", "openapi.json", "prompts", "score", "state")


@attrs.frozen(kw_only=True)
class ApiToken:
    """One caller of the HTTP interface; a scope is the first segment of the paths it opens, no scopes open all."""

    name: str
    token: str = attrs.field(repr=False)
    scopes: frozenset[str] = frozenset()


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser of whole numbers, both ends included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(text)

    return parse


def port(text: str) -> int:
    """Parses a TCP port; 0 stands for a free one."""
    if is_service_link(text):
        raise ValueError(
            "expected a port from 0 to 65535, but this is a Kubernetes service link, injected because a service has "
            "that name: set the port in the pod's env, or enableServiceLinks: false"
        )
    return whole_number(0, 65_535)(text)


def seconds(low: int, high: int) -> Callable[[str], float]:
    """Returns a parser of seconds with decimals, both ends included."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ValueError(f"expected seconds from {low} to {high}")
        return float(text)

    return parse


def one_of(*accepted: str) -> Callable[[str], str]:
    """Returns a parser that takes the given words and nothing else."""

    def parse(text: str) -> str:
        if text not in accepted:
            raise ValueError(f"expected {', '.join(accepted[:-1])} or {accepted[-1]}")
        return text

    return parse


def modules(text: str) -> tuple[str, ...]:
    """Parses names of Python modules, commas between them."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise ValueError("expected names of Python modules, as package.module, commas between them")
    return names


def prompt_versions(text: str) -> tuple[str, ...]:
    """Parses versions of prompt variants, commas between them; whether there are such is known at the start."""
    versions = tuple(version.strip() for version in text.split(","))
    if not all(map(VERSION.fullmatch, versions)) or len(set(versions)) < len(versions):
        raise ValueError("expected versions of prompt variants, commas between them, each once")
    return versions


def replicas(text: str) -> int:
    """Parses how many servers keep a stream: an odd number, as its leader is elected."""
    return int(one_of("1", "3", "5")(text))


def switch(text: str) -> bool:
    """Parses 0 and 1."""
    return one_of("0", "1")(text) == "1"


def durable_prefix(text: str) -> str:
    """Parses the first part of the durables' names; it must fit into a subject."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise ValueError("expected 1 to 64 letters, digits, _ or -")
    return text


def existing_file(text: str) -> Path:
    """Parses the path of a file, which must exist by now."""
    if not Path(text).is_file():
        raise ValueError("expected the path of a file that exists")
    return Path(text)


def model_name(text: str) -> str:
    """Parses the name of a model, which is that of a folder too."""
    if not NAME.fullmatch(text):
        raise ValueError("expected 1 to 64 small letters, digits, . _ or -, a letter or digit first")
    return text


def model_registry(text: str) -> str:
    """Parses the folder of the model registry, which need not exist yet, or the word none."""
    if text.lower() == NO_REGISTRY:
        return NO_REGISTRY
    if "://" in text or Path(text).is_file():
        raise ValueError("expected a folder, or none to look for no models")
    return text


def existing_folder(text: str) -> Path:
    """Parses the path of a folder, which must exist by now."""
    if not Path(text).is_dir():
        raise ValueError("expected the path of a folder that exists")
    return Path(text)


def host(text: str) -> str:
    """Parses an address to listen on, or a host name."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", text) and not _is_address(text):
        raise ValueError("expected an address or a host name, without scheme, port or brackets")
    return text


def servers(text: str) -> str:
    """Parses the URLs of NATS servers, commas between them; nothing at all stands for no NATS."""
    urls = [url.strip() for url in text.split(",")] if text else []
    if not all(_is_server(url) for url in urls):
        raise ValueError("expected nats://host:port or tls://host:port, more of them after commas, or nothing")
    return ",".join(urls)


def http_url(text: str) -> str:
    """Parses the base URL of an HTTP service; a name and password have a setting of their own."""
    if not _is_http(text):
        raise ValueError("expected http://host:port or https://host:port, perhaps with a path, and without a password")
    return text.rstrip("/")


def secret(text: str) -> str:
    """Parses a key; it must fit into a header."""
    if not re.fullmatch(r"[!-~]{1,512}", text):
        raise ValueError("expected 1 to 512 printable ASCII characters without spaces")
    return text


def llm_name(text: str) -> str:
    """Parses the name that the LLM gateway has for a model."""
    if not re.fullmatch(r"[!-~]{1,128}", text):
        raise ValueError("expected 1 to 128 printable ASCII characters without spaces")
    return text


def tokens(text: str) -> tuple[ApiToken, ...]:
    """Parses ``name:token[:scope+scope]``, commas between them."""
    parsed = tuple(_token(entry.strip(), position) for position, entry in enumerate(text.split(","), 1))
    for what in ("name", "token"):
        if len({getattr(token, what) for token in parsed}) < len(parsed):
            raise ValueError(f"expected each {what} once")
    return parsed


def show(value: object) -> str:
    """Returns a plain value as a person would have written it."""
    if value is None or value == "":
        return "(unset)" if value is None else "(empty)"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_servers(value: str | None) -> str:
    """Returns the URLs without the users, passwords and tokens in them."""
    return ",".join(_mask_url(url) for url in value.split(",")) if value else show(value)


def show_tokens(value: tuple[ApiToken, ...]) -> str:
    """Returns the names and what each may open."""
    return ", ".join(f"{token.name} ({'+'.join(sorted(token.scopes)) or 'all'})" for token in value) or "(none)"


def show_secret(value: str | None) -> str:
    """Returns whether there is one, and nothing of what it is."""
    return show(value) if value is None else HIDDEN


def conceal_all(_: str) -> str:
    """Returns what stands for a refused value that may be a secret."""
    return HIDDEN


def conceal_credentials(text: str) -> str:
    """Returns refused URLs as they are, unless a user or password may be in them."""
    return HIDDEN if "@" in text else text


def is_service_link(value: str) -> bool:
    """Says whether this is what Kubernetes injects as ``<SERVICE>_PORT``."""
    return value.startswith(("tcp://", "udp://", "sctp://"))


def is_loopback(value: str) -> bool:
    """Says whether nobody beyond this machine reaches what listens on ``value``."""
    return ipaddress.ip_address(value).is_loopback if _is_address(value) else value.lower() == "localhost"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_server(url: str) -> bool:
    if not re.fullmatch(r"(nats|tls)://[!-~]+", url):
        return False
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0  # raises ValueError for a bad one
    except ValueError:
        return False
    return has_port and bool(parts.hostname) and parts.path in ("", "/") and not (parts.query or parts.fragment)


def _is_http(url: str) -> bool:
    if not re.fullmatch(r"https?://[!-~]+", url):
        return False
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0  # raises ValueError for a bad one
    except ValueError:
        return False
    return has_port and bool(parts.hostname) and not ("@" in parts.netloc or parts.query or parts.fragment)


def _mask_url(url: str) -> str:
    scheme, _, rest = url.partition("//")
    _, at, server = rest.rpartition("@")
    return f"{scheme}//{HIDDEN}@{server}" if at else url


def _token(entry: str, position: int) -> ApiToken:
    name, _, rest = entry.partition(":")
    token, colon, scopes = rest.partition(":")
    chosen = frozenset(scopes.split("+")) if colon else frozenset()
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) or not rest:
        raise ValueError(f"entry {position}: expected name:token or name:token:scope+scope")
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{16,512}", token):
        raise ValueError(f"entry {position}: expected a token of 16 to 512 letters, digits, or any of . _ ~ + / = -")
    if not chosen <= set(SCOPES):
        raise ValueError(f"entry {position}: expected scopes out of {', '.join(SCOPES)}, joined by +")
    return ApiToken(name=name, token=token, scopes=chosen)
