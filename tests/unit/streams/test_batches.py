"""Records as commands of the NATS protocol, read back by a parser written here."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streams.batches import HEADERS_BYTES, encode_batch, encode_singles
from streams.spool import Record

RECORDS = st.lists(
    st.builds(
        Record,
        id=st.from_regex(r"[0-9a-f]{12}-[0-9]{1,12}", fullmatch=True),
        subject=st.just("decisions.score"),
        payload=st.binary(max_size=40),
    ),
    min_size=1,
    max_size=6,
)


def parse(commands: bytes) -> list[dict[str, Any]]:
    """Each command: its subject, reply, headers and payload."""
    found = []
    while commands:
        line, _, commands = commands.partition(b"\r\n")
        name, subject, *reply, header_size, size = line.decode().split()
        head, payload = commands[: int(header_size)], commands[int(header_size) : int(size)]
        assert name == "HPUB" and head.startswith(b"NATS/1.0\r\n") and head.endswith(b"\r\n\r\n")
        assert commands[int(size) : int(size) + 2] == b"\r\n" and len(head) + len(line) <= HEADERS_BYTES
        headers = dict(field.split(": ") for field in head.decode().splitlines()[1:-1])
        found.append({"subject": subject, "reply": "".join(reply), "headers": headers, "payload": payload})
        commands = commands[int(size) + 2 :]
    return found


@given(RECORDS)
def test_batch_is_numbered_and_its_last_message_commits(records: list[Record]) -> None:
    """Every message has its id and its place in the batch; the last one alone commits and asks for an answer."""
    for number, (record, found) in enumerate(
        zip(records, parse(encode_batch(records, batch_id="b1", reply="_INBOX.x.7")), strict=True), 1
    ):
        is_last = number == len(records)
        headers = {"Nats-Msg-Id": record.id, "Nats-Batch-Id": "b1", "Nats-Batch-Sequence": str(number)}
        assert found == {
            "subject": record.subject,
            "reply": "_INBOX.x.7" if is_last else "",
            "headers": headers | ({"Nats-Batch-Commit": "1"} if is_last else {}),
            "payload": record.payload,
        }


@given(RECORDS)
def test_singles_ask_for_an_answer_each(records: list[Record]) -> None:
    """A message of its own has its id and its own subject for the answer."""
    replies = [f"_INBOX.x.{number}" for number in range(len(records))]
    assert parse(encode_singles(zip(records, replies, strict=True))) == [
        {
            "subject": record.subject,
            "reply": reply,
            "headers": {"Nats-Msg-Id": record.id},
            "payload": record.payload,
        }
        for record, reply in zip(records, replies, strict=True)
    ]
