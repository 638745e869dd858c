"""A replay of isolated handlers: each in a process of its own, which is refused every outgoing connection."""

import isolated_handlers
import msgspec
from isolated_handlers import SUBJECT
from streams_kit import make_message

from state.scratch import Scratch
from streams.player import Player


async def test_player_runs_isolated_handlers_without_a_network() -> None:
    """Effects and rows are as in a worker; a connection to somebody is an error of the replayed message."""
    table = isolated_handlers.subjects
    with Scratch() as scratch:
        player = Player([table], scratch, peeks=lambda *_: [], max_deliver=5, max_payload_bytes=1_000_000)
        async with player:
            played = []
            for seq, what in enumerate(("succeed", "connect", "succeed", "loop"), 1):
                payload = msgspec.json.encode({"user_id": "ana", "n": seq, "what": what})
                played.append(await player.play(table, make_message(seq, payload, subject=SUBJECT)))
                if (last := played[-1]) and last.verdict.kind == "applied":
                    player.keep(last)
            seen = msgspec.json.decode(scratch.fetch("isolated", "ana") or b"")["seen"]
    assert [found.verdict.kind for found in played if found] == ["applied", "parked", "applied", "parked"]
    assert "NetworkRefused" in str(played[1]) and "ran longer than 1 s" in str(played[3]) and seen == [1, 3]
