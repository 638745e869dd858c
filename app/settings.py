"""The settings: what each is called, what it means, what it holds when unset, and what it accepts.

This module owns the one declaration of every setting and reads them all from a mapping that the caller passes in. It
refuses bad values, combinations that can't work, and names that are one or two slips away from one of ours; names of
others are none of its business. The environment itself is read in app/cli, the values are used by app/main.py, and
app/settings_values.py knows what a port, a token or a server's URL looks like.

An empty value means the default, as an unset one does; ``NATS_URL`` alone tells the two apart.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from app import settings_values as values
from app.settings_values import ApiToken
from models.errors import SettingsError
from streams.health import Mode


@attrs.frozen(kw_only=True)
class SettingRow:
    """One setting as a person reads it; ``value`` holds no secret."""

    name: str
    value: str
    source: Literal["environment", "default"]
    meaning: str


@attrs.frozen(kw_only=True)
class Declared:
    """What a setting is, beside its field: ``show`` makes a good value readable, ``conceal`` a refused one."""

    meaning: str
    parse: Callable[[str], object]
    show: Callable[[Any], str]
    conceal: Callable[[str], str] | None


def _setting(
    default: object,
    parse: Callable[[str], object],
    meaning: str,
    *,
    show: Callable[[Any], str] = values.show,
    conceal: Callable[[str], str] | None = None,
) -> Any:
    declared = Declared(meaning=meaning, parse=parse, show=show, conceal=conceal)
    return attrs.field(default=default, repr=conceal is None, metadata={"declared": declared})


@attrs.frozen(kw_only=True)
class Settings:
    """Every setting; the environment variable is the field's name in capitals."""

    nats_url: str | None = _setting(
        None,
        values.servers,
        "URLs of NATS servers, commas between them; unset: start one here, empty: no NATS, HTTP only.",
        show=values.show_servers,
        conceal=values.conceal_credentials,
    )
    nats_embedded_port: int = _setting(0, values.port, "Port of the NATS server started here; 0 takes a free one.")
    nats_durable_prefix: str = _setting(
        "tipstream", values.durable_prefix, "First part of the names of the durable consumers."
    )
    nats_max_deliver: int = _setting(
        5, values.whole_number(1, 1_000), "Failures of a handler on one message before it becomes a dead letter."
    )
    nats_creds: Path | None = _setting(None, values.existing_file, "Credentials file for NATS (JWT and seed).")
    nats_tls_ca: Path | None = _setting(
        None, values.existing_file, "PEM file of the authorities that may sign the NATS server's certificate."
    )
    nats_tls_cert: Path | None = _setting(
        None, values.existing_file, "PEM file of our certificate for NATS; needs NATS_TLS_KEY."
    )
    nats_tls_key: Path | None = _setting(None, values.existing_file, "PEM file of that certificate's private key.")
    stream_replicas: int = _setting(1, values.replicas, "Servers of the cluster that keep each stream: 1, 3 or 5.")
    parked_max: int = _setting(
        100_000, values.whole_number(1, 1_000_000_000), "Messages parked for a retry before their table's intake stops."
    )
    state_dir: Path = _setting(Path("var"), Path, "Folder of the store, and of the NATS server started here.")
    http_host: str = _setting("127.0.0.1", values.host, "Address that HTTP listens on.")
    http_port: int = _setting(8080, values.port, "Port that HTTP listens on; 0 takes a free one.")
    http_allow_open: bool = _setting(
        False, values.switch, "1 lets HTTP listen beyond loopback without API_TOKENS: anyone may call it."
    )
    api_tokens: tuple[ApiToken, ...] = _setting(
        (),
        values.tokens,
        "Who may call: name:token[:scope+scope], commas between; a scope is a path's first segment, none opens all.",
        show=values.show_tokens,
        conceal=values.conceal_all,
    )
    model_name: str = _setting("tip-scorer", values.model_name, "Name of the model in the registry.")
    model_registry: str | None = _setting(
        None,
        values.model_registry,
        "Folder of the models; unset: STATE_DIR/models, none: no models are looked for.",
        conceal=values.conceal_credentials,
    )
    litellm_url: str | None = _setting(
        None,
        values.http_url,
        "Base URL of the LiteLLM gateway; unset: tips are made here, without a model.",
        conceal=values.conceal_credentials,
    )
    litellm_api_key: str | None = _setting(
        None,
        values.secret,
        "Key for that gateway.",
        show=values.show_secret,
        conceal=values.conceal_all,
    )
    llm_model: str = _setting("tips", values.llm_name, "The gateway's name for the model that makes tips.")
    llm_fallback_model: str | None = _setting(
        None, values.llm_name, "The gateway's name for the model that is asked when the first one fails."
    )
    llm_cache_s: float = _setting(
        0.0, values.seconds(0, 86_400), "Seconds that an answer is given again to the same prompt; 0: never."
    )
    shutdown_s: float = _setting(20.0, values.seconds(0, 3_600), "Seconds that running handlers get to end at a stop.")
    plugins: tuple[str, ...] = _setting(
        (), values.modules, "Modules of plugins, commas between; those installed with an entry point need none."
    )
    plugin_errors: str = _setting(
        "stop", values.one_of("stop", "skip"), "What a plugin that can't be loaded does: stop the start, or skip it."
    )
    default_prompt_version: tuple[str, ...] = _setting(
        (),
        values.prompt_versions,
        "Prompt variant of requests that name none; several, commas between them, are dealt to users. Unset: v1.",
    )
    prompts_dir: Path | None = _setting(
        None, values.existing_folder, "Folder of further prompt variants; a running worker sees new files."
    )
    log_level: str = _setting(
        "info", values.one_of("debug", "info", "warning", "error"), "Least level that is logged: debug to error."
    )
    log_format: str | None = _setting(
        None, values.one_of("text", "json"), "text or json; unset: text on a terminal, json elsewhere."
    )

    @property
    def model_folder(self) -> Path | None:
        """Where the model registry is, or None when no models are looked for."""
        if self.model_registry is None:
            return self.state_dir / "models"
        return None if self.model_registry == values.NO_REGISTRY else Path(self.model_registry)

    @property
    def nats_mode(self) -> Mode:
        """Where NATS runs: started here, elsewhere, or nowhere."""
        if self.nats_url is None:
            return "embedded"
        return "external" if self.nats_url else "disabled"

    @property
    def nats_urls(self) -> tuple[str, ...]:
        """The servers to connect to, with their passwords; none unless NATS runs elsewhere."""
        return tuple(self.nats_url.split(",")) if self.nats_url else ()


def load_settings(env: Mapping[str, str]) -> Settings:
    """Reads every setting from ``env``.

    Raises:
        SettingsError: a value or a combination is refused, or a name looks like a slip of one of ours.
    """
    fields = _fields()
    for name in sorted(set(env) - set(fields)):
        _refuse_slip(name, env[name], tuple(fields))
    given = {field.name: _parse(name, field, env[name]) for name, field in fields.items() if _is_given(name, env)}
    settings = Settings(**given)
    _refuse_combinations(settings)
    return settings


def describe_settings(env: Mapping[str, str]) -> list[SettingRow]:
    """Returns every setting in the order of the declarations, secrets masked.

    Raises:
        SettingsError: as load_settings does.
    """
    settings = load_settings(env)
    return [
        SettingRow(
            name=name,
            value=_declared(field).show(getattr(settings, field.name)),
            source="environment" if _is_given(name, env) else "default",
            meaning=_declared(field).meaning,
        )
        for name, field in _fields().items()
    ]


def _fields() -> dict[str, "attrs.Attribute[Any]"]:
    return {field.name.upper(): field for field in attrs.fields(Settings)}


def _declared(field: "attrs.Attribute[Any]") -> Declared:
    declared = field.metadata["declared"]
    assert isinstance(declared, Declared)
    return declared


def _is_given(name: str, env: Mapping[str, str]) -> bool:
    return name in env and (name == "NATS_URL" or bool(env[name].strip()))


def _parse(name: str, field: "attrs.Attribute[Any]", text: str) -> Any:
    declared = _declared(field)
    try:
        return declared.parse(text.strip())
    except ValueError as error:
        shown = declared.conceal(text) if declared.conceal else text
        raise SettingsError(name, shown, str(error)) from error


def _refuse_combinations(settings: Settings) -> None:
    if (settings.nats_tls_cert is None) != (settings.nats_tls_key is None):
        missing = "NATS_TLS_CERT" if settings.nats_tls_cert is None else "NATS_TLS_KEY"
        raise SettingsError(missing, None, "expected too, NATS_TLS_CERT and NATS_TLS_KEY go together")
    if not (values.is_loopback(settings.http_host) or settings.api_tokens or settings.http_allow_open):
        expected = "beyond loopback set API_TOKENS too, or HTTP_ALLOW_OPEN=1 to let anyone in"
        raise SettingsError("HTTP_HOST", settings.http_host, expected)


def _refuse_slip(name: str, value: str, ours: tuple[str, ...]) -> None:
    if name.endswith("_PORT") and values.is_service_link(value):
        return  # a service called "https" or "http2" injects HTTPS_PORT or HTTP2_PORT
    edits, nearest = min(((_edits(name, known), known) for known in ours), key=lambda pair: pair[0])
    if edits <= 2:
        raise SettingsError(name, None, f"unknown setting, did you mean {nearest}?")


def _edits(a: str, b: str) -> int:
    """Returns the Levenshtein distance; names whose lengths differ by more than 2 are not worth counting."""
    if abs(len(a) - len(b)) > 2:
        return 3
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
