"""``models train``: a new version of the model, from the decision log and the rewards, or from the simulated world.

This module reads the streams and keeps what comes out; what a row is and how it is learned from is the business of
models/training/, which is imported only when a model is trained. A new version serves nobody before it is promoted.
"""

import contextlib
import datetime as dt
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import click
import msgspec

from app.cards import show_number, show_percent
from app.cli.instants import InstantParam
from app.cli.session import HasEnvironment, build_app, connected, print_json, registry_of, run_command
from app.settings import Settings, load_settings
from models.card import Card, Rollout
from models.codec import decoder_for
from models.errors import ModelError, PayloadError, StoreUnwritable, TrainingError
from models.events import TipRewarded
from models.features import FEATURES, Assembler, Feature
from models.files import locked, make_folder
from models.registry import ALIASES, STARTER_REASON, Registry
from streams.broker import Broker
from streams.message import Message
from streams.provision import stream_info
from streams.reading import read_messages, seq_at
from streams.topology import DECISIONS

if TYPE_CHECKING:
    from models.training.dataset import Dataset
    from models.training.decisions import Gathering, Key, Reward

FEEDBACK = "FEEDBACK"
REWARD_SUBJECT = "feedback.tip.rewarded"
SEED = 0
INSTEAD = "--simulated trains on a simulated world instead"

REASONS = {
    "no_model": "answered without a model",
    "other_features": "by a model that is not in the registry",
    "unsettled": "less than a day old",
    "unrewarded": "without a reward",
    "too_old": "older than the newest rows",
}
"""Why decisions were left out, in words; what is not here says it by its name."""

_decode_reward = decoder_for(TipRewarded)


@attrs.frozen(kw_only=True)
class Asked:
    """What is asked for, as typed."""

    is_simulated: bool
    is_starter: bool
    is_promoted: bool
    added: tuple[str, ...]
    seed: int
    row_limit: int | None
    since: dt.datetime | None
    until: dt.datetime | None

    def refuse_contradictions(self) -> None:
        """Raises click.UsageError when two options can't go together."""
        if (self.is_simulated or self.is_starter) and (self.since or self.until):
            raise click.UsageError("--since and --until choose logged decisions, and a simulated world has none")
        if (self.is_simulated or self.is_starter) and self.added:
            raise click.UsageError("--add-feature is for the decision log, and a simulated world has its own features")
        if self.is_starter and (self.is_simulated or self.is_promoted):
            raise click.UsageError("--starter is simulated and promoted as it is; give it alone")
        if self.since and self.until and self.since >= self.until:
            raise click.UsageError("--since is not before --until")


@attrs.frozen(kw_only=True)
class Done:
    """What came of it; ``left_out`` says why decisions were not used."""

    version: str
    card: Card
    moved: Rollout | None
    left_out: dict[str, int] = attrs.field(factory=dict)


@click.command("train")
@click.option("--simulated", "is_simulated", is_flag=True, help="Learn from a simulated world, as before any log.")
@click.option("--since", type=InstantParam(), help="Only decisions from this instant on.")
@click.option("--until", type=InstantParam(), help="Only decisions before this instant.")
@click.option("--rows", "row_limit", type=click.IntRange(500, 1_000_000), help="Of the world; of a log the newest.")
@click.option("--seed", default=SEED, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Of world and fit.")
@click.option("--add-feature", "added", multiple=True, metavar="NAME", help="Learn from this one, too; repeatable.")
@click.option("--promote", "is_promoted", is_flag=True, help="Let the new version serve at once.")
@click.option("--starter", "is_starter", is_flag=True, help="Simulated and promoted, where nothing ever was.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.pass_obj
def train_command(obj: HasEnvironment, /, *, as_json: bool, **asked: Any) -> None:
    """Train a new version of the model on logged decisions and their rewards.

    Used are decisions with at least one reward that are a day old or older. Learned from are the features that the
    champion reads, and those added: a new one is missing in what was logged before, so add it, promote, and train again
    on the decisions that follow. The same data and seed make the same model. It serves once it is promoted; the next
    worker that starts does that with a simulated one, unless an alias was ever moved or there is another version that
    is not simulated.
    """
    request = Asked(**asked)
    request.refuse_contradictions()
    registry = registry_of(obj)
    done = _start(registry, request) if request.is_starter else _train(load_settings(obj.env), registry, request)
    if done is None:
        return  # somebody else makes the first version, or has, or has decided what serves
    if as_json:
        print_json(msgspec.to_builtins(_as_dict(done)))
    else:
        _print(done)


def _start(registry: Registry, asked: Asked) -> Done | None:
    """Makes and promotes the first version, or promotes it where a starter has ended in between.

    Returns:
        None: somebody else is at it, or has decided what serves.

    Raises:
        ModelError: the registry can't be read.
        StoreUnwritable: the registry can't be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            make_folder(registry.folder)
            stack.enter_context(locked(registry.folder / "starter.lock", wait_s=0))
        except BlockingIOError:
            return None
        except OSError as error:
            raise StoreUnwritable(registry.folder, f"the model registry can't be written ({error})") from error
        if not registry.awaits_starter():
            return None
        versions = registry.versions()
        if not versions:
            return _keep(registry, _simulated(asked), asked, reason=STARTER_REASON)
        moved = _promote(registry, versions[0], asked, reason=STARTER_REASON)
        return Done(version=versions[0], card=registry.read_card(versions[0]), moved=moved)


def _train(settings: Settings, registry: Registry, asked: Asked) -> Done:
    if asked.is_simulated:
        return _keep(registry, _simulated(asked), asked, reason="trained with --simulated --promote")
    declared = build_app(settings).features  # the champion may read those of plugins
    for name in asked.added:
        if name not in declared:
            raise click.UsageError(f"--add-feature: {name!r} is not declared; there are {', '.join(sorted(declared))}")
    gathered = run_command(_gather(settings, registry, asked))
    left_out = {reason: count for reason, count in gathered.left_out.items() if count}
    try:
        dataset = gathered.rows.dataset(gathered.source)
        done = _keep(registry, dataset, asked, reason="trained with --promote", declared=declared)
    except TrainingError as error:
        there = ", ".join((f"{gathered.rows.used_count} decisions used", *map(_counted, left_out.items())))
        raise TrainingError(f"{error.problem} ({there}); {INSTEAD}") from error
    return attrs.evolve(done, left_out=left_out)


def _keep(
    registry: Registry,
    dataset: "Dataset",
    asked: Asked,
    *,
    reason: str,
    declared: Mapping[str, Feature] = FEATURES,
) -> Done:
    """Learns from the rows, publishes what comes out, and promotes it if asked to."""
    from models.training.fit import Parameters, train

    now = dt.datetime.now(dt.UTC)
    inputs = Assembler(dataset.names, declared).inputs
    trained = train(dataset, name=registry.name, inputs=inputs, parameters=Parameters(seed=asked.seed), now=now)
    version = registry.publish(trained.artifact, trained.card)
    is_promoted = asked.is_promoted or asked.is_starter
    moved = _promote(registry, version, asked, reason=reason) if is_promoted else None
    return Done(version=version, card=trained.card, moved=moved)


def _promote(registry: Registry, version: str, asked: Asked, *, reason: str) -> Rollout | None:
    """Lets the version serve; a starter model only where nobody has chosen another one while it was trained."""
    return registry.promote(version, reason=reason, now=dt.datetime.now(dt.UTC), replaces=not asked.is_starter)


def _simulated(asked: Asked) -> "Dataset":
    from models.training.simulation import ROW_COUNT, STARTER_NAMES, simulate

    return simulate(STARTER_NAMES, seed=asked.seed, row_count=asked.row_limit or ROW_COUNT).dataset


@attrs.frozen(kw_only=True)
class _Gathered:
    """What the streams hold, as rows; decisions that are not used are counted by reason."""

    rows: "Gathering"
    left_out: Counter[str]
    source: str


async def _gather(settings: Settings, registry: Registry, asked: Asked) -> _Gathered:
    from models.decisions import SCORE_SUBJECT, decode_score_decision
    from models.training.decisions import ROW_LIMIT, Gathering

    now = dt.datetime.now(dt.UTC)
    unused: Counter[str] = Counter()
    async with connected(settings) as broker:
        rewards = await _read_rewards(broker, asked.since)
        names = tuple(dict.fromkeys((*_names(registry), *asked.added)))
        row_limit = asked.row_limit or ROW_LIMIT
        rows = Gathering(names, rewards, lists=_lists(registry), now=now, row_limit=row_limit)
        async for message in _stored(broker, DECISIONS, SCORE_SUBJECT, asked.since):
            try:
                decision = decode_score_decision(message.payload)
            except PayloadError:
                unused["unreadable"] += 1
                continue
            if (asked.since and decision.now < asked.since) or (asked.until and decision.now >= asked.until):
                continue
            rows.add(decision)
    unused.update(rows.left_out)
    source = f"{SCORE_SUBJECT} with {REWARD_SUBJECT}, read at {now.isoformat('T', 'seconds')}"
    return _Gathered(rows=rows, left_out=unused, source=source)


async def _read_rewards(broker: Broker, since: dt.datetime | None) -> "dict[Key, Reward]":
    """The first reward of each request and tip; what does not decode is a dead letter of the worker's, and left out."""
    from models.training.decisions import Reward

    found: dict[Key, Reward] = {}
    async for message in _stored(broker, FEEDBACK, REWARD_SUBJECT, since):
        try:
            event = _decode_reward(message.payload)
        except PayloadError:
            continue
        found.setdefault((event.request_id, event.tip_id), Reward(value=event.reward, at=event.occurred_at))
    return found


async def _stored(broker: Broker, stream: str, subject: str, since: dt.datetime | None) -> AsyncIterator[Message]:
    """The messages that a stream got at an instant or after it; none when there is no such stream."""
    info = await stream_info(broker, stream)
    first = int(info["state"]["first_seq"]) if info else None
    if info and since:
        first = await seq_at(broker, stream, since)
    if info is None or first is None:
        return
    last = int(info["state"]["last_seq"])
    async with contextlib.aclosing(read_messages(broker, stream, [subject], first, last)) as messages:
        async for message in messages:
            yield message


def _names(registry: Registry) -> tuple[str, ...]:
    """The features to learn from: those of the champion, which wrote the log; without one the starter's."""
    from models.training.simulation import STARTER_NAMES

    champion = registry.aliases().get(ALIASES[0])
    return STARTER_NAMES if champion is None else tuple(one.name for one in registry.read_card(champion).inputs)


def _lists(registry: Registry) -> Iterator[tuple[str, ...]]:
    """The features of each version whose card can be read: any of them may have written the log."""
    for version in registry.versions():
        with contextlib.suppress(ModelError):
            yield tuple(one.name for one in registry.read_card(version).inputs)


def _counted(reason_and_count: tuple[str, int]) -> str:
    reason, count = reason_and_count
    return f"{count} {REASONS.get(reason, reason)}"


def _as_dict(done: Done) -> dict[str, object]:
    card = done.card
    return {
        "version": done.version,
        "is_simulated": card.training.is_simulated,
        "rows": card.training.row_count,
        "positive_ratio": card.training.positive_ratio,
        "features": len(card.inputs),
        "trees": card.parameters["tree_count"],
        "metrics": {one.name: {"value": one.value, "low": one.low, "high": one.high} for one in card.metrics},
        "fairness_failed": [one.name for one in card.fairness if not one.has_passed],
        "left_out": done.left_out,
        "rollout": done.moved and attrs.asdict(done.moved),
    }


def _print(done: Done) -> None:
    card = done.card
    kind = "simulated rows" if card.training.is_simulated else "rows"
    click.echo(f"version {done.version}: {card.training.row_count} {kind}, {card.parameters['tree_count']} trees")
    if done.left_out:
        click.echo(f"decisions left out: {', '.join(map(_counted, done.left_out.items()))}")
    for metric in card.metrics:
        span = f"{show_number(metric.low)} to {show_number(metric.high)}"
        click.echo(f"{metric.name}: {show_number(metric.value)} ({span}, {show_percent(metric.level)})")
    for check in card.fairness:
        if not check.has_passed:
            click.echo(f"not fair: {check.name}: {show_number(check.gap)} apart, {show_number(check.limit)} allowed")
    if done.moved:
        click.echo(f"{done.moved.alias}: version {done.moved.former or 'none'} -> {done.version}")
    else:
        click.echo(f"next: models card {done.version}, then models promote {done.version} --reason …")
