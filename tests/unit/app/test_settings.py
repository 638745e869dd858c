"""The settings as a whole: defaults, combinations, slips of the pen, and what may be shown."""

from pathlib import Path

import attrs
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import Settings, describe_settings, load_settings
from models.errors import SettingsError

TOKEN = "0123456789abcdef"
DEFAULTS = {
    "nats_url": None,
    "nats_embedded_port": 0,
    "nats_durable_prefix": "tipstream",
    "nats_max_deliver": 5,
    "nats_creds": None,
    "nats_tls_ca": None,
    "nats_tls_cert": None,
    "nats_tls_key": None,
    "stream_replicas": 1,
    "parked_max": 100_000,
    "state_dir": Path("var"),
    "http_host": "127.0.0.1",
    "http_port": 8080,
    "http_allow_open": False,
    "api_tokens": (),
    "model_name": "tip-scorer",
    "model_registry": None,
    "litellm_url": None,
    "litellm_api_key": None,
    "llm_model": "tips",
    "llm_fallback_model": None,
    "llm_cache_s": 0.0,
    "shutdown_s": 20.0,
    "plugins": (),
    "plugin_errors": "stop",
    "default_prompt_version": (),
    "prompts_dir": None,
    "log_level": "info",
    "log_format": None,
}


def test_settings_hold_the_documented_defaults() -> None:
    """An empty environment gives the defaults that the documentation states."""
    assert attrs.asdict(load_settings({})) == DEFAULTS


def test_settings_take_an_empty_value_as_unset() -> None:
    """An empty variable, as container tools pass it on, means the default, for each setting but NATS_URL."""
    env = {name.upper(): "  " for name in DEFAULTS if name != "nats_url"}
    assert load_settings(env) == Settings()
    assert {row.source for row in describe_settings(env)} == {"default"}


def test_settings_read_every_value(tmp_path: Path) -> None:
    """Each variable ends in the field of its name, with the field's type."""
    file = tmp_path / "file"
    file.touch()
    expected = {
        "nats_url": "nats://a:4222,tls://b",
        "nats_embedded_port": 4333,
        "nats_durable_prefix": "mine",
        "nats_max_deliver": 7,
        **dict.fromkeys(("nats_creds", "nats_tls_ca", "nats_tls_cert", "nats_tls_key"), file),
        "stream_replicas": 3,
        "parked_max": 12,
        "state_dir": Path("/data"),
        "http_host": "localhost",
        "http_port": 0,
        "http_allow_open": True,
        "model_name": "m.2",
        "model_registry": "/models",
        "litellm_url": "http://gateway:4000",
        "litellm_api_key": "sk-1",
        "llm_model": "openai/gpt-4o",
        "llm_fallback_model": "small",
        "llm_cache_s": 60.0,
        "shutdown_s": 2.5,
        "plugins": ("a.b", "c"),
        "plugin_errors": "skip",
        "default_prompt_version": ("v2", "v1"),
        "prompts_dir": tmp_path,
        "log_level": "debug",
        "log_format": "json",
    }
    env = {name.upper(): str(int(value) if isinstance(value, bool) else value) for name, value in expected.items()}
    env |= {"PLUGINS": "a.b, c", "DEFAULT_PROMPT_VERSION": "v2, v1"}
    assert attrs.asdict(load_settings(env)) == expected | {"api_tokens": ()}


@pytest.mark.parametrize(
    ("env", "mode", "urls"),
    [
        pytest.param({}, "embedded", (), id="unset"),
        pytest.param({"NATS_URL": ""}, "disabled", (), id="empty"),
        pytest.param({"NATS_URL": " nats://a , tls://b "}, "external", ("nats://a", "tls://b"), id="two-servers"),
    ],
)
def test_nats_url_decides_where_nats_runs(env: dict[str, str], mode: str, urls: tuple[str, ...]) -> None:
    """NATS_URL tells unset, which starts a server, from empty, which does without NATS."""
    settings = load_settings(env)
    assert (settings.nats_mode, settings.nats_urls) == (mode, urls)


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        pytest.param({"STATE_DIR": "/data"}, Path("/data/models"), id="unset"),
        pytest.param({"STATE_DIR": "/data", "MODEL_REGISTRY": "here"}, Path("here"), id="folder"),
        pytest.param({"MODEL_REGISTRY": "None"}, None, id="none"),
    ],
)
def test_model_registry_decides_where_models_are(env: dict[str, str], folder: Path | None) -> None:
    """In STATE_DIR, in a folder that is named, or nowhere."""
    assert load_settings(env).model_folder == folder


def test_settings_name_the_key_the_value_and_what_is_accepted() -> None:
    """A refused value is an error of one sentence with all that is needed to mend it."""
    with pytest.raises(SettingsError) as caught:
        load_settings({"STREAM_REPLICAS": "2"})
    assert str(caught.value) == "STREAM_REPLICAS: expected 1, 3 or 5, got '2'"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("NATS_EMBEDDED_PORT", "65536", id="embedded-port"),
        pytest.param("PLUGINS", "a.b,c-d", id="plugins"),
        pytest.param("PLUGIN_ERRORS", "ignore", id="plugin-errors"),
        pytest.param("NATS_DURABLE_PREFIX", "a.b", id="prefix"),
        pytest.param("NATS_MAX_DELIVER", "0", id="max-deliver-low"),
        pytest.param("NATS_MAX_DELIVER", "1001", id="max-deliver-high"),
        pytest.param("NATS_CREDS", "/no/such/file", id="creds"),
        pytest.param("NATS_TLS_CA", "/no/such/file", id="tls-ca"),
        pytest.param("PARKED_MAX", "0", id="parked"),
        pytest.param("HTTP_HOST", "http://a", id="host"),
        pytest.param("HTTP_PORT", "-1", id="port"),
        pytest.param("HTTP_ALLOW_OPEN", "yes", id="switch"),
        pytest.param("MODEL_NAME", "../x", id="model"),
        pytest.param("MODEL_REGISTRY", "http://a", id="registry"),
        pytest.param("LITELLM_URL", "gateway:4000", id="gateway"),
        pytest.param("LLM_MODEL", "two words", id="llm"),
        pytest.param("LLM_FALLBACK_MODEL", "x" * 129, id="llm-fallback"),
        pytest.param("LLM_CACHE_S", "-1", id="llm-cache"),
        pytest.param("SHUTDOWN_S", "3601", id="shutdown"),
        pytest.param("DEFAULT_PROMPT_VERSION", "v1,v1", id="prompt-twice"),
        pytest.param("PROMPTS_DIR", "/no/such/folder", id="prompts"),
        pytest.param("LOG_LEVEL", "loud", id="level"),
        pytest.param("LOG_FORMAT", "xml", id="format"),
    ],
)
def test_settings_refuse_what_they_can_not_use(name: str, value: str) -> None:
    """Each setting refuses values outside its range, and quotes them."""
    with pytest.raises(SettingsError, match=f"^{name}: expected .*, got '{value}'$"):
        load_settings({name: value})


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        pytest.param("NATS_TLS_CERT", "NATS_TLS_KEY", id="no-key"),
        pytest.param("NATS_TLS_KEY", "NATS_TLS_CERT", id="no-certificate"),
    ],
)
def test_settings_want_certificate_and_key_together(given: str, missing: str, tmp_path: Path) -> None:
    """A certificate without its key, or the other way round, names the one that is missing."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="go together") as caught:
        load_settings({given: str(tmp_path / "file")})
    assert caught.value.key == missing


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_settings_refuse_to_listen_openly(host: str) -> None:
    """An address beyond loopback without tokens is refused, and the error names both ways out."""
    with pytest.raises(SettingsError, match=r"^HTTP_HOST: .*API_TOKENS.*HTTP_ALLOW_OPEN=1"):
        load_settings({"HTTP_HOST": host})


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"HTTP_HOST": "0.0.0.0", "API_TOKENS": f"ui:{TOKEN}"}, id="tokens"),
        pytest.param({"HTTP_HOST": "0.0.0.0", "HTTP_ALLOW_OPEN": "1"}, id="allowed"),
        pytest.param({"HTTP_HOST": "127.0.0.2"}, id="loopback-4"),
        pytest.param({"HTTP_HOST": "::1"}, id="loopback-6"),
        pytest.param({"HTTP_HOST": "LocalHost"}, id="loopback-name"),
    ],
)
def test_settings_listen_where_it_is_safe_or_meant(env: dict[str, str]) -> None:
    """Loopback needs nothing; beyond it either tokens or the explicit permission do."""
    assert load_settings(env).http_host == env["HTTP_HOST"]


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        pytest.param("NATS_URI", "NATS_URL", id="one-letter"),
        pytest.param("NATS_URLS", "NATS_URL", id="one-more"),
        pytest.param("NAT_URL", "NATS_URL", id="one-less"),
        pytest.param("HTTP_PROT", "HTTP_PORT", id="two-swapped"),
        pytest.param("STATEDIR", "STATE_DIR", id="no-underscore"),
        pytest.param("API_TOKEN", "API_TOKENS", id="singular"),
        pytest.param("SHUTDOWN", "SHUTDOWN_S", id="two-less"),
    ],
)
def test_settings_refuse_a_slip_and_suggest_the_name(slip: str, meant: str) -> None:
    """A name within two edits of one of ours stops the start with the suggestion, whatever it holds."""
    with pytest.raises(SettingsError) as caught:
        load_settings({slip: "", meant: ""})
    assert str(caught.value) == f"{slip}: unknown setting, did you mean {meant}?"


@hypothesis.settings(deadline=None)
@given(st.sampled_from(sorted(DEFAULTS)), st.data())
def test_settings_refuse_every_two_slips(field: str, data: st.DataObject) -> None:
    """Whichever two letters are changed, the name is refused, unless it is one of ours again."""
    letters = list(field.upper())
    for _ in range(2):
        letters[data.draw(st.integers(0, len(letters) - 1))] = data.draw(st.sampled_from("ABCXYZ_01"))
    name = "".join(letters)
    if name.lower() in DEFAULTS:
        return
    with pytest.raises(SettingsError, match="did you mean"):
        load_settings({name: ""})


FOREIGN = """
    HOME HOST HOSTNAME LANG LOGNAME PATH PORT PWD SHELL TERM TMPDIR USER VIRTUAL_ENV HTTP_PROXY HTTPS_PROXY NO_PROXY
    ALL_PROXY http_proxy NATS_PORT NATS_HOST NATS_USER NATS_PASSWORD NATS_CA NATS_CERT NATS_KEY NATS_TOKEN
    NATS_SERVICE_HOST NATS_SERVICE_PORT NATS_SERVICE_PORT_CLIENT NATS_PORT_4222_TCP NATS_PORT_4222_TCP_ADDR
    NATS_PORT_4222_TCP_PORT NATS_PORT_4222_TCP_PROTO HTTP_PORT_80_TCP HTTP_SERVICE_HOST HTTP_SERVICE_PORT
    KUBERNETES_PORT STATE_URL MODEL_PATH LOG_FILE LOG_DIR LOG_COLOR DATA_DIR CACHE_DIR HTTP_TIMEOUT API_KEY API_URL
    PYTHONPATH LITELLM_LOG LITELLM_MASTER_KEY LITELLM_SALT_KEY LITELLM_MODE LITELLM_PORT LITELLM_SERVICE_HOST
    LITELLM_API_BASE LLM_API_KEY OPENAI_API_KEY
""".split()


@pytest.mark.parametrize("name", FOREIGN)
def test_settings_ignore_names_of_others(name: str) -> None:
    """What shells, proxies, NATS clients and Kubernetes service links put there is none of our business."""
    assert load_settings({name: "tcp://10.0.0.1:80"}) == Settings()
    assert load_settings({name: "anything"}) == Settings()


@pytest.mark.parametrize("name", ["HTTPS_PORT", "HTTP2_PORT"])
def test_settings_ignore_service_links_close_to_ours(name: str) -> None:
    """The link of a service called "https" is no slip; the same name with a plain value is."""
    assert load_settings({name: "tcp://10.0.0.1:443"}) == Settings()
    with pytest.raises(SettingsError, match="did you mean HTTP_PORT"):
        load_settings({name: "443"})


def test_http_port_explains_a_service_link() -> None:
    """A service called "http" overwrites HTTP_PORT in each pod: the error says so and what to do."""
    with pytest.raises(SettingsError, match=r"^HTTP_PORT: .*Kubernetes service link.*enableServiceLinks: false"):
        load_settings({"HTTP_PORT": "tcp://10.0.0.1:80"})


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        pytest.param("API_TOKENS", "ui:short-secret", "short", id="token-too-short"),
        pytest.param("API_TOKENS", "hunter2hunter2hunter2:ui", "hunter2", id="name-and-token-swapped"),
        pytest.param("API_TOKENS", f"ui:{TOKEN}:hunter2", "hunter2", id="token-with-colon"),
        pytest.param("LITELLM_API_KEY", "sk-hunter2 x", "hunter2", id="key-with-space"),
        pytest.param("LITELLM_URL", "http://me:hunter2@gateway", "hunter2", id="gateway-with-password"),
        pytest.param("NATS_URL", "user:hunter2@a", "hunter2", id="url-without-scheme"),
        pytest.param("NATS_URL", "nats://user:hun,ter2@a", "hun", id="password-with-comma"),
        pytest.param("MODEL_REGISTRY", "mlflow+http://user:hunter2@a", "hunter2", id="registry-with-password"),
    ],
)
def test_settings_error_hides_secrets(name: str, value: str, secret: str) -> None:
    """The error for a refused secret says which setting, and nothing of what it holds."""
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings({name: value})
    assert secret not in str(caught.value)
    assert secret not in repr(vars(caught.value))


def test_settings_repr_hides_secrets() -> None:
    """Settings that end in a log by accident carry neither tokens nor the servers' passwords."""
    env = {"API_TOKENS": f"ui:{TOKEN}", "NATS_URL": "nats://me:hunter2@a", "LITELLM_API_KEY": "sk-hunter3"}
    settings = load_settings(env)
    assert not any(secret in f"{settings!r} {settings.api_tokens!r}" for secret in (TOKEN, "hunter2", "sk-hunter3"))


def test_describe_settings_shows_value_source_and_meaning() -> None:
    """Each setting has a row, in the order of the declarations, that says where its value came from."""
    rows = {row.name: row for row in describe_settings({"HTTP_PORT": " 9000 ", "NATS_URL": ""})}
    assert list(rows) == [name.upper() for name in DEFAULTS]
    assert (rows["HTTP_PORT"].value, rows["HTTP_PORT"].source) == ("9000", "environment")
    assert (rows["NATS_URL"].value, rows["NATS_URL"].source) == ("(empty)", "environment")
    assert (rows["SHUTDOWN_S"].value, rows["SHUTDOWN_S"].source) == ("20", "default")
    assert all(row.meaning.endswith(".") for row in rows.values())


def test_describe_settings_masks_secrets() -> None:
    """Tokens are shown by name and scope, and servers without what stands before the @."""
    env = {"API_TOKENS": f"ui:{TOKEN}", "NATS_URL": "nats://me:hunter2@a:1,tls://seed@b", "LITELLM_API_KEY": "sk-1"}
    shown = {row.name: row.value for row in describe_settings(env)}
    assert (shown["LITELLM_API_KEY"], shown["LITELLM_URL"]) == ("****", "(unset)")
    assert shown["API_TOKENS"] == "ui (all)"
    assert shown["NATS_URL"] == "nats://****@a:1,tls://****@b"


def test_describe_settings_refuses_what_load_settings_refuses() -> None:
    """A broken environment is not described: the same error stops both."""
    with pytest.raises(SettingsError, match="HTTP_PORT"):
        describe_settings({"HTTP_PORT": "x"})
