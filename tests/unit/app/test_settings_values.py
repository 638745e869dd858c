"""What each kind of setting accepts, and how it is shown."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import settings_values as values
from app.settings_values import ApiToken

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("007", 7), ("10", 10)])
def test_whole_number_takes_both_ends(text: str, number: int) -> None:
    """Digits alone make a number, from the lowest to the highest that is allowed."""
    assert values.whole_number(1, 10)(text) == number


@pytest.mark.parametrize("text", ["0", "11", "-1", "+1", "1_0", "1.0", "1e1", "٣", "", "x", "9" * 5000])
def test_whole_number_refuses_the_rest(text: str) -> None:
    """Signs, separators, other scripts' digits and numbers out of range are refused with the range."""
    with pytest.raises(ValueError, match="^expected a whole number from 1 to 10$"):
        values.whole_number(1, 10)(text)


@pytest.mark.parametrize("link", ["tcp://10.0.0.1:80", "udp://10.0.0.1:80", "sctp://10.0.0.1:80"])
def test_port_names_the_service_link(link: str) -> None:
    """What Kubernetes injects in place of a port is recognised for each protocol."""
    with pytest.raises(ValueError, match="service link"):
        values.port(link)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("8080", 8080), ("65535", 65_535)])
def test_port_takes_every_port(text: str, number: int) -> None:
    """A port is a number up to the highest there is; 0 stands for a free one."""
    assert values.port(text) == number


@pytest.mark.parametrize(("text", "names"), [("a", ("a",)), (" a.b , _c1,", ("a.b", "_c1")), (",", ())])
def test_modules_takes_names_of_modules(text: str, names: tuple[str, ...]) -> None:
    """Dotted names are taken in order; blanks and a comma too many do no harm."""
    assert values.modules(text) == names


@pytest.mark.parametrize("text", ["a-b", "a..b", ".a", "a.", "a/b", "a:b", "a b", "1a"])
def test_modules_refuses_the_rest(text: str) -> None:
    """Paths, relative names, functions and what Python would not import are refused with what is accepted."""
    with pytest.raises(ValueError, match="^expected names of Python modules, as package.module, commas between them$"):
        values.modules(f"good,{text}")


@pytest.mark.parametrize("text", ["tip-scorer", "a", "0.1_b", "a" * 64])
def test_model_name_takes_names_of_folders(text: str) -> None:
    """Small letters, digits and a few signs make a name."""
    assert values.model_name(text) == text


@pytest.mark.parametrize("text", ["A", "..", "a/b", ".a", "-a", "a" * 65, "ä", "a\n"])
def test_model_name_refuses_the_rest(text: str) -> None:
    """What could leave the registry, or be another folder on another system, is refused."""
    with pytest.raises(ValueError, match="^expected 1 to 64 small letters, digits"):
        values.model_name(text)


@pytest.mark.parametrize(
    ("text", "value"), [("/m", "/m"), ("m/../n", "m/../n"), ("NONE", "none"), ("./none", "./none")]
)
def test_model_registry_takes_a_folder_or_none(text: str, value: str) -> None:
    """The word is taken however it is written; a folder need not exist."""
    assert values.model_registry(text) == value


@pytest.mark.parametrize("text", ["file:///m", "mlflow+sqlite:///m.db", __file__])
def test_model_registry_refuses_the_rest(text: str) -> None:
    """Neither a URL nor a file is a folder."""
    with pytest.raises(ValueError, match="^expected a folder, or none to look for no models$"):
        values.model_registry(text)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("3", 3), ("5", 5)])
def test_replicas_takes_odd_numbers(text: str, number: int) -> None:
    """One, three or five servers can elect a leader."""
    assert values.replicas(text) == number


@pytest.mark.parametrize("text", ["0", "2", "4", "7", "03", ""])
def test_replicas_refuses_the_rest(text: str) -> None:
    """Other numbers are refused with those that are accepted."""
    with pytest.raises(ValueError, match="^expected 1, 3 or 5$"):
        values.replicas(text)


@pytest.mark.parametrize(
    ("host", "is_safe"),
    [("127.0.0.2", True), ("::1", True), ("LOCALHOST", True), ("0.0.0.0", False), ("::", False), ("host", False)],
)
def test_loopback_is_known_by_address_and_by_name(host: str, is_safe: bool) -> None:
    """Every loopback address and its one name count, no other name does, wherever it may lead."""
    assert values.is_loopback(host) is is_safe


@pytest.mark.parametrize(("text", "number"), [("0", 0.0), ("2.5", 2.5), ("3600", 3600.0)])
def test_seconds_takes_decimals(text: str, number: float) -> None:
    """Seconds may have decimals, and both ends are allowed."""
    assert values.seconds(0, 3600)(text) == number


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "3600.1", "1e3", ".5", "5.", "20s", ""])
def test_seconds_refuses_the_rest(text: str) -> None:
    """What float() would take beyond plain decimals is refused, as are units."""
    with pytest.raises(ValueError, match="^expected seconds from 0 to 3600$"):
        values.seconds(0, 3600)(text)


@pytest.mark.parametrize(("text", "is_on"), [("0", False), ("1", True)])
def test_switch_takes_0_and_1(text: str, is_on: bool) -> None:
    """A switch is 0 or 1."""
    assert values.switch(text) is is_on


@pytest.mark.parametrize("text", ["true", "no", "2", "01"])
def test_switch_refuses_words(text: str) -> None:
    """Words are refused, so that nobody opens a port with "false"."""
    with pytest.raises(ValueError, match="^expected 0 or 1$"):
        values.switch(text)


@pytest.mark.parametrize("text", ["a", "A-b_9", "x" * 64])
def test_durable_prefix_takes_what_fits_a_subject(text: str) -> None:
    """Letters, digits, _ and - are kept as they are."""
    assert values.durable_prefix(text) == text


@pytest.mark.parametrize("text", ["a.b", "a b", "*", ">", "é", "x" * 65, "a\n"])
def test_durable_prefix_refuses_what_does_not(text: str) -> None:
    """Dots, wildcards, spaces and long names would break the durable's subjects."""
    with pytest.raises(ValueError, match="1 to 64"):
        values.durable_prefix(text)


def test_existing_file_takes_files_alone(tmp_path: Path) -> None:
    """A folder, or a path that leads nowhere, is no credentials file."""
    file = tmp_path / "file"
    file.touch()
    assert values.existing_file(str(file)) == file
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="file that exists"):
            values.existing_file(str(path))


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "fe80::1%eth0", "localhost", "my-host.example"])
def test_host_takes_addresses_and_names(text: str) -> None:
    """Addresses of both families and host names are kept as they are."""
    assert values.host(text) == text


@pytest.mark.parametrize("text", ["http://a", "127.0.0.1:80", "[::1]", "a b", "*"])
def test_host_refuses_more_than_a_host(text: str) -> None:
    """Schemes, ports and brackets belong elsewhere."""
    with pytest.raises(ValueError, match="without scheme, port or brackets"):
        values.host(text)


@pytest.mark.parametrize(
    "text", ["", "nats://a", "tls://a:4222", "nats://u:p@a:1,nats://t@b/", "nats://[::1]:4222", "nats://u:p@ss@a"]
)
def test_servers_takes_urls(text: str) -> None:
    """URLs of both schemes are taken, with ports, users and addresses of both families."""
    assert values.servers(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a:4222", id="no-scheme"),
        pytest.param("http://a", id="other-scheme"),
        pytest.param("nats://", id="no-host"),
        pytest.param("nats://:4222", id="port-alone"),
        pytest.param("nats://a:0", id="port-0"),
        pytest.param("nats://a:99999", id="port-too-high"),
        pytest.param("nats://a:x", id="port-a-word"),
        pytest.param("nats://a/b", id="path"),
        pytest.param("nats://a?b", id="query"),
        pytest.param("nats://a#b", id="fragment"),
        pytest.param("nats://[::1", id="open-bracket"),
        pytest.param("nats://a b", id="space"),
        pytest.param("nats://a,", id="comma-at-the-end"),
        pytest.param("nats://a\n.b", id="newline"),
    ],
)
def test_servers_refuses_what_nats_can_not_reach(text: str) -> None:
    """Anything but a list of complete NATS URLs is refused in the words of the setting."""
    with pytest.raises(ValueError, match="^expected nats://host:port"):
        values.servers(text)


def test_tokens_reads_names_tokens_and_scopes() -> None:
    """Each entry is a name, a token and the scopes it is limited to, if any."""
    text = f"ui:{TOKEN}, probe:{TOKEN}+/=:health+metrics"
    assert values.tokens(text) == (
        ApiToken(name="ui", token=TOKEN),
        ApiToken(name="probe", token=f"{TOKEN}+/=", scopes=frozenset({"health", "metrics"})),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("ui", "entry 1: expected name:token", id="no-token"),
        pytest.param("ui:", "entry 1: expected name:token", id="empty-token"),
        pytest.param(f":{TOKEN}", "entry 1: expected name:token", id="no-name"),
        pytest.param(f"ui:{TOKEN},", "entry 2: expected name:token", id="comma-at-the-end"),
        pytest.param(f"ui:{TOKEN[:-1]}", "entry 1: expected a token of 16", id="15-letters"),
        pytest.param(f"ui:{TOKEN} x", "entry 1: expected a token of 16", id="space-in-token"),
        pytest.param(
            f"ui:{TOKEN}:",
            "entry 1: expected scopes out of docs, feedback, generate",
            id="no-scope",
        ),
        pytest.param(f"ui:{TOKEN}:health+admin", "entry 1: expected scopes", id="unknown-scope"),
        pytest.param(f"ui:{TOKEN}:health:state", "entry 1: expected scopes", id="scopes-joined-wrongly"),
        pytest.param(f"ui:{TOKEN},ui:{TOKEN}2", "expected each name once", id="name-twice"),
        pytest.param(f"ui:{TOKEN},me:{TOKEN}", "expected each token once", id="token-twice"),
    ],
)
def test_tokens_refuses_what_is_unsafe_or_unclear(text: str, problem: str) -> None:
    """Short tokens, unknown scopes and doubles are refused, by the entry's number."""
    with pytest.raises(ValueError, match=f"^{problem}"):
        values.tokens(text)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "(unset)"), ("", "(empty)"), (True, "1"), (False, "0"), (20.0, "20"), (2.5, "2.5"), (Path("a/b"), "a/b")],
)
def test_show_writes_a_value_as_it_is_set(value: object, shown: str) -> None:
    """What is shown can be written into the environment; nothing at all is named."""
    assert values.show(value) == shown


def test_show_servers_names_nothing_like_any_other_setting() -> None:
    """Unset and empty servers read like other unset and empty values."""
    assert (values.show_servers(None), values.show_servers("")) == ("(unset)", "(empty)")


@settings(deadline=None)
@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",/?#[]"), min_size=1)))
def test_show_servers_hides_every_password(passwords: list[str]) -> None:
    """Whatever a password is made of, what is shown depends on the hosts alone."""
    text = ",".join(f"nats://u:{password}@host:4222" for password in passwords)
    assert values.servers(text) == text
    assert values.show_servers(text) == (",".join(["nats://****@host:4222"] * len(passwords)) or "(empty)")


def test_show_tokens_names_scopes() -> None:
    """Tokens read as names with what they open; none at all is said."""
    probe = ApiToken(name="probe", token=TOKEN, scopes=frozenset({"metrics", "health"}))
    assert values.show_tokens((ApiToken(name="ui", token=TOKEN), probe)) == "ui (all), probe (health+metrics)"
    assert values.show_tokens(()) == "(none)"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a", "http://a"),
        ("https://a.b:443/llm/", "https://a.b:443/llm"),
        ("http://[::1]:4000", "http://[::1]:4000"),
    ],
)
def test_http_url_takes_a_base(text: str, url: str) -> None:
    """A host, perhaps a port and a path; a slash at the end makes no difference."""
    assert values.http_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "a:4000",
        "ftp://a",
        "http://",
        "http://:80",
        "http://a:0",
        "http://a:x",
        "http://u:p@a",
        "http://a?b",
        "http://a#b",
    ],
)
def test_http_url_refuses_the_rest(text: str) -> None:
    """No scheme, host or good port, and what can't be part of a base, is refused without being quoted."""
    with pytest.raises(ValueError, match="^expected http://host:port or https://host:port, perhaps with a path"):
        values.http_url(text)


@pytest.mark.parametrize("parse", [values.secret, values.llm_name])
@pytest.mark.parametrize("text", ["", "a b", "a\nb", "ä", "x" * 513])
def test_secret_and_llm_name_refuse_what_fits_no_header(parse: Callable[[str], str], text: str) -> None:
    """Spaces, line ends, other scripts and what is too long are refused; the rest is taken as it is."""
    with pytest.raises(ValueError, match="printable ASCII characters without spaces$"):
        parse(text)
    assert parse("openai/gpt-4o:x") == "openai/gpt-4o:x"


def test_show_secret_says_only_that_there_is_one() -> None:
    """A key is masked, and one that is missing is said to be."""
    assert (values.show_secret("sk-1"), values.show_secret(None)) == ("****", "(unset)")


def test_conceal_hides_what_may_be_secret() -> None:
    """A refused URL is quoted only while nothing in it can be a password."""
    assert values.conceal_credentials("http://a") == "http://a"
    assert values.conceal_credentials("u:p@a") == "****"
    assert values.conceal_all(TOKEN) == "****"


@pytest.mark.parametrize(("text", "versions"), [("v1", ("v1",)), ("v2 , v1", ("v2", "v1"))], ids=["one", "list"])
def test_prompt_versions_takes_versions(text: str, versions: tuple[str, ...]) -> None:
    """One, or several between commas, in their order."""
    assert values.prompt_versions(text) == versions


@pytest.mark.parametrize("text", ["", "v1,", "v1,v1", "v 1", "-v1"])
def test_prompt_versions_refuses_the_rest(text: str) -> None:
    """Nothing, a version twice, and what no variant can be called."""
    with pytest.raises(ValueError, match="expected versions of prompt variants, commas between them, each once"):
        values.prompt_versions(text)


def test_existing_folder_takes_folders_alone(tmp_path: Path) -> None:
    """A file, and what is not there, are refused."""
    (tmp_path / "file").touch()
    assert values.existing_folder(str(tmp_path)) == tmp_path
    for path in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(ValueError, match="expected the path of a folder that exists"):
            values.existing_folder(str(path))
