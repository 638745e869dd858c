"""A tip always comes back: by the model, the fallback model or made here, whole or as it comes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
from generate_kit import GOOD, OTHER
from harness import wait_until
from llm_kit import FakeModel, Reply

from models.context import PromptContext
from prompts.checks import check_tip
from prompts.gateway import Gateway, GatewayConfig
from prompts.ledger import Usage
from prompts.registry import SHIPPED, Variant, load_variant, load_variants
from prompts.retries import RetryConfig
from prompts.tips import Tip
from prompts.wire import WireConfig
from prompts.writer import MAX_OPEN, Part, Writer

V1 = load_variants([SHIPPED])["v1"]
NUMBERS = "Plan 4 tasks before 9:00, as you did 17 times."


@attrs.frozen
class Desk:
    """A writer, the gateway that it asks, and the models behind that."""

    writer: Writer
    gateway: Gateway
    model: FakeModel

    async def write(self, tip: Tip, *, is_streamed: bool = False) -> list[Part]:
        """What is told of a tip while it is written."""
        if is_streamed:
            return [part async for part in self.writer.stream(tip)]
        await self.writer.write(tip)
        return []


@contextlib.asynccontextmanager
async def desk(
    *, fallback_model: str | None = None, cache_s: float = 0.0, **script: list[Reply]
) -> AsyncIterator[Desk]:
    """A writer whose first model is "tips"."""
    async with FakeModel(**script) as model, Gateway(config_of(model, cache_s=cache_s)) as gateway:
        writer = Writer(lambda: gateway, release=as_it_is, model="tips", fallback_model=fallback_model)
        yield Desk(writer, gateway, model)


def config_of(model: FakeModel, *, cache_s: float = 0.0) -> GatewayConfig:
    """Asks once."""
    return GatewayConfig(wire=WireConfig(url=model.url), retry=RetryConfig(max_retries=0), cache_s=cache_s)


def as_it_is(variant: Variant) -> Variant:
    """Releases a variant that has not changed."""
    return variant


def tip_of(*, in_s: float = 30.0, variant: Variant = V1, tip_kind: str | None = None) -> Tip:
    """A tip that has so many seconds."""
    return Tip(variant=variant, context=PromptContext(tip_kind=tip_kind), deadline=time.monotonic() + in_s)


BOTH_WAYS = pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])


@BOTH_WAYS
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(Reply(status=429), "rate_limited", id="429"),
        pytest.param(Reply(status=500), "unavailable", id="500"),
        pytest.param(Reply(status=401), "refused", id="wrong-key"),
        pytest.param(Reply(stall="before"), "timeout", id="stall"),
        pytest.param(Reply(cut="before"), "cut", id="cut"),
        pytest.param(Reply(body=b"data: {no json\n\n"), "bad_answer", id="bad-json"),
        pytest.param(Reply(text=NUMBERS), "failed_checks:numbers", id="numbers"),
        pytest.param(Reply(text="Start with the", finish="length"), "failed_checks:unfinished", id="unfinished"),
    ],
)
async def test_writer_makes_the_tip_when_the_model_has_none(reply: Reply, reason: str, is_streamed: bool) -> None:
    """Whatever the model does, a tip that passes the checks is there in time, and the reason is told."""
    tip = tip_of(in_s=0.5 if reason == "timeout" else 30)
    async with desk(tips=[reply]) as at:
        await at.write(tip, is_streamed=is_streamed)
    assert (tip.fallback, tip.model, tip.degraded_reason) == ("template", "local", reason)
    assert check_tip(tip.text, limits=V1.limits, context=tip.context).failed == ()


@BOTH_WAYS
async def test_writer_takes_the_first_models_text(is_streamed: bool) -> None:
    """With what it took; nobody else is asked."""
    tip = tip_of()
    async with desk(fallback_model="other", tips=[Reply(text=GOOD)]) as at:
        await at.write(tip, is_streamed=is_streamed)
        assert [seen.body["model"] for seen in at.model.seen] == ["tips"]
    assert (tip.text, tip.model, tip.fallback, tip.degraded_reason) == (GOOD, "tips", "none", None)
    assert (tip.usage, tip.usage_estimated) == (Usage(prompt_tokens=11, completion_tokens=7), False)


async def test_writer_asks_the_fallback_model_in_the_time_that_is_left() -> None:
    """A first model that stalls has a share of the deadline only."""
    tip = tip_of(in_s=4)
    async with desk(fallback_model="other", tips=[Reply(stall="before")], other=[Reply(text=OTHER)]) as at:
        await at.write(tip)
    assert (tip.text, tip.model, tip.fallback, tip.degraded_reason) == (OTHER, "other", "model", "timeout")


async def test_writer_sums_up_what_both_models_took() -> None:
    """A text that is refused was paid for, too."""
    tip = tip_of()
    async with desk(fallback_model="other", tips=[Reply(text=NUMBERS)], other=[Reply(text=OTHER)]) as at:
        await at.write(tip)
    assert (tip.text, tip.failed_checks) == (OTHER, ["numbers"])
    assert tip.usage == Usage(prompt_tokens=22, completion_tokens=14)  # 2 * 11, 2 * 7


async def test_writer_keeps_no_text_that_was_refused() -> None:
    """The next one who asks the same gets another text, which is kept; a refused one would stand for a day."""
    tips = [tip_of() for _ in range(3)]
    async with desk(cache_s=60, tips=[Reply(text=NUMBERS), Reply(text=GOOD)]) as at:
        for tip in tips:
            await at.write(tip)
        assert len(at.model.seen) == 2
    assert [(tip.fallback, tip.cached) for tip in tips] == [
        ("template", False),
        ("none", False),
        ("none", True),
    ]


async def test_stream_that_is_refused_leaves_what_is_kept() -> None:
    """It was another text: who asks for a whole one has the one that passed before."""
    first, told, again = tip_of(), tip_of(), tip_of()
    async with desk(cache_s=60, tips=[Reply(text=GOOD), Reply(text=NUMBERS)]) as at:
        await at.write(first)
        await at.write(told, is_streamed=True)
        await at.write(again)
    assert (told.degraded_reason, again.text, again.cached) == ("failed_checks:numbers", GOOD, True)


@BOTH_WAYS
async def test_writer_asks_nobody_when_the_time_is_up(is_streamed: bool) -> None:
    """The reason stands once, and nothing was spent."""
    tip = tip_of(in_s=-1)
    async with desk(fallback_model="other") as at:
        await at.write(tip, is_streamed=is_streamed)
        assert (at.model.seen, at.gateway.ledger.facts()) == ([], {})
    assert (tip.fallback, tip.degraded_reason, tip.usage) == ("template", "timeout", None)


async def test_writer_without_a_gateway_makes_the_tip() -> None:
    """A stream of it is one part, which replaces nothing."""
    tip = tip_of()
    parts = [part async for part in Writer(lambda: None, release=as_it_is, model="tips").stream(tip)]
    assert parts == [Part(text=tip.text)]
    assert (tip.fallback, tip.degraded_reason, tip.usage) == ("template", "no_gateway", None)


async def test_writer_asks_with_what_is_released(tmp_path: Path) -> None:
    """A variant that has changed since it was chosen is asked with as it is now, and the tip says so."""
    (tmp_path / "v1.j2").write_text((SHIPPED / "v1.j2").read_text() + "\nAs it is now.\n")
    current, tip = load_variant(tmp_path / "v1.j2"), tip_of()
    async with FakeModel(tips=[Reply(text=GOOD)]) as model, Gateway(config_of(model)) as gateway:
        await Writer(lambda: gateway, release=lambda _: current, model="tips").write(tip)
        assert model.seen[0].body["messages"][1]["content"].endswith("As it is now.")
    assert tip.variant is current


async def test_writer_makes_the_tip_when_the_prompt_can_not_be_rendered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the variant, and quotes no text of the user."""
    front = "---\nversion: t1\npurpose: A test.\nvariables:\n  tip_kind: what\nlimits:\n  max_chars: 200\n---\n"
    (tmp_path / "t1.j2").write_text(front + "Write.\n--- user\n{{ {}[tip_kind] }}\n")
    tip = tip_of(variant=load_variant(tmp_path / "t1.j2"), tip_kind="a secret of the user")
    async with desk() as at:
        await at.write(tip)
        assert at.model.seen == []
    assert (tip.fallback, tip.degraded_reason) == ("template", "prompt_failed")
    [record] = caplog.records
    assert record.__dict__["fields"] == {"version": "t1", "error": "UndefinedError"}
    assert "a secret" not in caplog.text


async def test_writer_lets_a_bounded_number_wait() -> None:
    """One more gets the tip that is made here, at once; those who wait get the model's."""
    gate, tips, late = asyncio.Event(), [tip_of() for _ in range(MAX_OPEN)], tip_of()
    async with desk(tips=[Reply(text=GOOD, hold=gate)]) as at:
        tasks = [asyncio.create_task(at.write(tip)) for tip in tips]
        await wait_until(lambda: at.model.seen, what="the model is asked")
        await at.write(late)
        gate.set()
        await asyncio.gather(*tasks)
        await at.write(again := tip_of())
    assert (late.fallback, late.degraded_reason) == ("template", "overloaded")
    assert {tip.text for tip in [*tips, again]} == {GOOD}


@pytest.mark.parametrize("around", ["", "\n"], ids=["bare", "lines"])
async def test_stream_tells_the_text_as_it_comes(around: str) -> None:
    """Its parts are the deltas, they add up to the tip, and nothing is replaced for a line that ends."""
    tip = tip_of()
    async with desk(tips=[Reply(text=f"{around}{GOOD}{around}")]) as at:
        parts = await at.write(tip, is_streamed=True)
    assert ("".join(part.text for part in parts).strip(), tip.text) == (GOOD, GOOD)
    assert len(parts) >= len(GOOD.split())
    assert not any(part.is_whole for part in parts)


@pytest.mark.parametrize(
    ("reply", "shown", "told_count"),
    [
        pytest.param(Reply(text=GOOD, cut=3), OTHER, 3, id="cut"),
        pytest.param(Reply(text=NUMBERS), OTHER, len(NUMBERS.split()), id="refused"),
        pytest.param(Reply(text=f"**{GOOD}**"), GOOD, len(GOOD.split()), id="repaired"),
    ],
)
async def test_stream_that_told_another_text_replaces_it_once(reply: Reply, shown: str, told_count: int) -> None:
    """The checks see the text at its end only: its last part is then the whole tip."""
    tip = tip_of()
    async with desk(fallback_model="other", tips=[reply], other=[Reply(text=OTHER)]) as at:
        *told, last = await at.write(tip, is_streamed=True)
    assert (len(told), any(part.is_whole for part in told)) == (told_count, False)
    assert (last, tip.text) == (Part(text=shown, is_whole=True), shown)


async def test_writer_that_is_cancelled_bounds_what_the_model_took() -> None:
    """The call has ended, and the tip has the most that it can have taken, as the ledger does."""
    tip = tip_of()
    async with desk(tips=[Reply(stall="before")]) as at:
        task = asyncio.create_task(at.write(tip))
        await wait_until(lambda: at.model.seen, what="the model is asked")
        task.cancel()
        await asyncio.wait({task})
        assert (task.cancelled(), tip.text, tip.usage_estimated) == (True, "", True)
        assert tip.usage == at.gateway.ledger.facts()["tips"].most
        await wait_until(lambda: at.model.endings("left"), what="the model sees its client leave")


async def test_stream_that_is_closed_bounds_what_the_model_took() -> None:
    """Closing it in the middle ends the call."""
    tip = tip_of()
    async with desk(tips=[Reply(text=GOOD, stall=2)]) as at:
        stream = at.writer.stream(tip)
        assert await anext(stream) == Part(text="Pick")
        await stream.aclose()
        assert (tip.text, tip.usage_estimated) == ("", True)
        assert tip.usage == at.gateway.ledger.facts()["tips"].most
        await wait_until(lambda: at.model.endings("left"), what="the model sees its client leave")


@BOTH_WAYS
async def test_stop_gives_a_tip_to_those_who_wait_for_a_model(is_streamed: bool) -> None:
    """It is made here, also for whoever comes later; a call that was under way is bounded."""
    waiting, later = tip_of(), tip_of()
    async with desk(fallback_model="other", tips=[Reply(stall="before")]) as at:
        task = asyncio.create_task(at.write(waiting, is_streamed=is_streamed))
        await wait_until(lambda: at.model.seen, what="the model is asked")
        at.writer.stop()
        await task
        await at.write(later, is_streamed=is_streamed)
        assert len(at.model.seen) == 1
    assert (waiting.fallback, waiting.degraded_reason, waiting.usage_estimated) == ("template", "stopping", True)
    assert (later.fallback, later.degraded_reason, later.usage) == ("template", "stopping", None)


async def test_stop_ends_a_stream_whose_reader_is_busy() -> None:
    """Nobody waits for the model at that moment; the next part is the tip that is made here."""
    tip = tip_of()
    async with desk(tips=[Reply(text=GOOD, stall=1)]) as at:
        stream = at.writer.stream(tip)
        await anext(stream)
        at.writer.stop()
        assert [part async for part in stream] == [Part(text=tip.text, is_whole=True)]
    assert (tip.fallback, tip.degraded_reason) == ("template", "stopping")
