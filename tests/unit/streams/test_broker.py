"""The parts of the broker that need no server: what is read from subjects, headers and answers."""

import base64
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from creds_kit import Operator
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Server
from streams_kit import make_message

from models.errors import BrokerError
from streams.broker import Access, Broker, _next_server
from streams.deliveries import (
    PullStatus,
    StoredMessage,
    parse_delivery,
    parse_instant_ns,
    parse_status,
    parse_stored,
)

V1 = "$JS.ACK.SIGNALS.tipstream-signals.2.71.5.1767225600123456789.40"
V2 = "$JS.ACK.hub.ACCHASH.SIGNALS.tipstream-signals.2.71.5.1767225600123456789.40.random"


@pytest.mark.parametrize("reply", [V1, V2], ids=["nine-tokens", "with-domain"])
def test_delivery_is_read_from_its_reply_subject(reply: str) -> None:
    """Stream, sequences and timestamp stand in the reply subject, in the old form and in the one with a domain."""
    message = parse_delivery("signals.step", b"{}", reply)
    assert (message.stream, message.seq, message.consumer_seq, message.ts) == ("SIGNALS", 71, 5, 1767225600123456789)
    assert (message.subject, message.payload, message.reply) == ("signals.step", b"{}", reply)
    assert make_message().stream == message.stream


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(
            {"Status": "408", "Description": "Request Timeout", "Nats-Pending-Messages": "7"},
            PullStatus(code=408, description="Request Timeout", pending_messages=7),
            id="timeout",
        ),
        pytest.param({"Status": "100"}, PullStatus(code=100, description="", pending_messages=0), id="heartbeat"),
        pytest.param({}, PullStatus(code=100, description="", pending_messages=0), id="none"),
        pytest.param(
            {"Status": "4o9", "Nats-Pending-Messages": "¹"},
            PullStatus(code=100, description="", pending_messages=0),
            id="garbage",
        ),
    ],
)
def test_status_is_read_from_its_headers(headers: dict[str, str], expected: PullStatus) -> None:
    """Code, words and what was left of the request; what can't be read counts as a sign of life."""
    assert parse_status(headers) == expected


@given(st.dictionaries(st.sampled_from(["Status", "Description", "Nats-Pending-Messages"]), st.text(max_size=6)))
def test_status_of_any_headers_is_read(headers: dict[str, str]) -> None:
    """No header whatever can raise an error in the callback that reads it."""
    status = parse_status(headers)
    assert status.code >= 0
    assert status.pending_messages >= 0


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2026-01-01T00:00:00Z", 1767225600_000000000),
        ("2026-01-01T00:00:00.5Z", 1767225600_500000000),
        ("2026-01-01T00:00:00.123456789Z", 1767225600_123456789),
        ("1970-01-01T00:00:00.000000001Z", 1),
    ],
)
def test_instant_is_read_to_the_nanosecond(text: str, nanoseconds: int) -> None:
    """The server drops trailing zeros of a second's fraction; none of its digits is lost."""
    assert parse_instant_ns(text) == nanoseconds


def test_stored_message_is_read_with_its_headers() -> None:
    """The API's answer becomes a message with decoded payload and headers; a value may hold a colon."""
    headers = base64.b64encode(b"NATS/1.0\r\nNats-Msg-Id: a:b\r\nOther:  x \r\n\r\n").decode()
    answer = {"subject": "s", "seq": 4, "time": "1970-01-01T00:00:01Z", "data": "e30=", "hdrs": headers}
    expected = StoredMessage(
        subject="s", seq=4, ts=1_000_000_000, payload=b"{}", headers={"Nats-Msg-Id": "a:b", "Other": "x"}
    )
    assert parse_stored(answer) == expected
    bare = parse_stored({"subject": "s", "seq": 4, "time": "1970-01-01T00:00:01Z"})
    assert (bare.payload, bare.headers) == (b"", {})


def servers(*reconnects: int) -> list[Server]:
    """Servers that have failed so often."""
    return [Server(uri=None, reconnects=count) for count in reconnects]  # type: ignore[arg-type]


def test_next_server_is_the_one_that_failed_least() -> None:
    """The server with the fewest failures comes next."""
    pool = servers(4, 1, 3)
    assert _next_server(pool, {})[0] is pool[1]


@pytest.mark.parametrize(("reconnects", "ceiling_s"), [(0, 0.05), (3, 0.4), (8, 2.0), (1000, 2.0)])
def test_wait_before_a_connect_grows_to_a_bound(reconnects: int, ceiling_s: float) -> None:
    """The wait is random up to a bound that doubles with each failure, to two seconds at most."""
    waits = [_next_server(servers(reconnects), {})[1] for _ in range(200)]
    assert 0 <= min(waits) < ceiling_s / 2 < max(waits) <= ceiling_s


def test_access_without_tls_files_has_no_context() -> None:
    """Without a certificate there is no TLS of our own."""
    assert Access(creds=Path("x.creds")).tls_context() is None


def test_access_builds_a_context_that_checks_the_server(tmp_path: Path) -> None:
    """The context trusts the given authority, checks names, and carries the client's certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("worker@example.org")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    context = Access(tls_ca=tmp_path / "ca.pem", tls_cert=tmp_path / "client.pem").tls_context()
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("text", [None, "no certificate"], ids=["missing", "garbage"])
def test_unusable_tls_file_is_one_clear_error(text: str | None, tmp_path: Path) -> None:
    """A TLS file that is missing, or is none, is named by its settings."""
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text, encoding="ascii")
    with pytest.raises(BrokerError, match="NATS_TLS_CA, NATS_TLS_CERT, NATS_TLS_KEY: can't be used"):
        Access(tls_ca=path).tls_context()


def test_access_takes_a_credentials_file_and_none(tmp_path: Path) -> None:
    """A whole credentials file passes, and so does none at all."""
    Access(creds=Operator().write_creds(tmp_path / "worker.creds")).check_creds()
    Access().check_creds()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda text: "", "expected the JWT and the seed", id="empty"),
        pytest.param(lambda text: text.split("-----BEGIN USER")[0], "expected the JWT and the seed", id="no-seed"),
        pytest.param(lambda text: text.replace("\nSU", "\nSX"), "invalid prefix byte", id="bad-seed"),
        pytest.param(None, "No such file", id="missing"),
    ],
)
async def test_unusable_credentials_file_is_one_clear_error(
    spoil: Callable[[str], str] | None, words: str, tmp_path: Path
) -> None:
    """A file that nats-py would stumble over in the middle of a connect stops the start, named."""
    path = Operator().write_creds(tmp_path / "worker.creds")
    text = path.read_text(encoding="ascii")
    path.unlink()
    if spoil:
        path.write_text(spoil(text), encoding="ascii")
    with pytest.raises(BrokerError, match=rf"NATS_CREDS: .*worker\.creds can't be used \(.*{words}"):
        async with Broker(["nats://127.0.0.1:1"], name="test", access=Access(creds=path)):
            raise AssertionError("entered")


async def test_broker_that_was_never_entered_is_not_connected() -> None:
    """Before it is entered nothing is connected, nothing can be sent, and nothing raises."""
    broker = Broker(["nats://127.0.0.1:1"], name="test")
    assert not broker.is_connected
    assert not await broker.send("signals.step")
    await broker.ack(["$JS.ACK.x"])
    await broker.flush()


async def test_broker_that_is_left_at_once_ends() -> None:
    """Leaving before the first connect has begun, as a start that fails does, raises nothing of its own."""
    with pytest.raises(KeyError):
        async with Broker(["nats://127.0.0.1:1"], name="test"):
            raise KeyError("the start failed")
