"""The chaos test with small counts; ``make chaos`` has the large ones."""

from pathlib import Path

import pytest
from chaos.run import Plan, Sent, judge, run


@pytest.mark.timeout(240)
async def test_chaos_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Kills of workers and server, cuts, freezes and fatal messages: each event is applied once, in order, or dead."""
    plan = Plan(seed=4, events=5000, rate=500, worker_kills=8, cuts=4, server_kills=1, freezes=1)
    assert await run(plan, tmp_path) == []


def test_chaos_sees_what_goes_wrong() -> None:
    """The judge names a lost event, a doubled output, an inversion, an innocent dead letter and what is left over."""
    sent = Sent(kinds={1: "ok", 2: "ok", 3: "poison"}, wanted={"u": [1, 2]})
    state = {"traces": {"u": {"count": 2, "last": 2, "inversions": 0}}, "total": 2, "waiting": [0, 0, 0, 0]}
    outputs = [{"user_id": "u", "n": 1}, {"user_id": "u", "n": 2}]
    assert judge(sent, state, outputs, [3]) == []
    inverted = state | {"traces": {"u": {"count": 2, "last": 2, "inversions": 1}}}
    assert len(judge(sent, inverted, outputs, [3])) == 1
    assert len(judge(sent, state | {"total": 1, "waiting": [1, 0, 0, 0]}, outputs, [3])) == 2
    assert len(judge(sent, state, [*outputs, outputs[0]], [3])) == 1
    assert len(judge(sent, state, outputs[:1], [3])) == 1
    assert len(judge(sent, state, outputs, [3, 1])) == 1
    assert len(judge(sent, state, outputs, [])) == 1
