"""Scoring what waits together: whose rows are whose, who waits for what, and what answers when a model can't."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_kit import INPUTS, artifact, card

from models.card import Input, feature_hash
from models.errors import ModelError
from models.features import Assembler, Matrix
from models.scorer import CALL_BUDGET_S, GATHER_S, MAX_WAITING_ROWS, QUIET_TURNS, Model, Scorer, Scores, load_model
from models.scoring import PRIOR_SCORE, request_decoder

FAR = 1e9


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def model_of(version: str, *, row_s: float = 0.0, calls: list[Matrix] | None = None) -> Model:
    """A model whose score of a row is a tenth of what the row holds, plus a thousandth of the version."""
    own = calls if calls is not None else []

    def predict(rows: Matrix) -> list[float]:
        own.append(rows)
        return [float(row[0]) / 10 + int(version) / 1000 for row in rows]

    assembler = Assembler([one.name for one in INPUTS])
    decode = request_decoder(assembler)
    facts = card(artifact())
    return Model(version=version, card=facts, predict=predict, assembler=assembler, decode=decode, row_s=row_s)


def rows(*values: float) -> Matrix:
    """A matrix with these values in its first column."""
    return np.array([[value, 0, 0] for value in values], dtype=np.float32)


def run(scoring: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs it on a loop of its own, as a property needs."""
    return asyncio.run(scoring())


@attrs.frozen(kw_only=True)
class Asking:
    """A request of the property below; its deadline is a number of the scorer's looks at the clock."""

    version: str
    count: int
    after_turns: int
    deadline: float
    leaves: bool


LOOK_S = GATHER_S / 5

ASKING = st.builds(
    Asking,
    version=st.sampled_from(["1", "2"]),
    count=st.integers(1, 7),
    after_turns=st.integers(0, 5),
    deadline=st.integers(0, 12) | st.just(FAR),
    leaves=st.booleans(),
)


@attrs.define
class Traffic:
    """Requests on their way through one scorer, and what its models were given at which of its looks at the clock."""

    row_s: float
    look: int = 0
    arrived: list[int] = attrs.field(factory=list)
    calls: list[tuple[int, str, list[float]]] = attrs.field(factory=list)

    def next_look(self) -> float:
        """The scorer's clock, which goes on with each look at it."""
        self.look += 1
        return self.look * LOOK_S

    def model(self, version: str) -> Model:
        """A model that keeps what it is given."""
        base = model_of(version, row_s=self.row_s)

        def predict(given: Matrix) -> list[float]:
            self.calls.append((self.look, version, [float(row[0]) for row in given]))
            return base.predict(given)

        return attrs.evolve(base, predict=predict)

    async def run(self, asked: list[Asking]) -> list[Scores | BaseException]:
        """Sends them all; those that leave do so after a turn of the loop."""
        scorer = Scorer(clock=self.next_look)
        models = {version: self.model(version) for version in ("1", "2")}

        async def ask(number: int, one: Asking) -> Scores:
            for _ in range(one.after_turns):
                await asyncio.sleep(0)
            self.arrived.append(number)
            return await scorer.score(models[one.version], rows(*rows_of(number, one)), deadline=one.deadline * LOOK_S)

        tasks = [asyncio.create_task(ask(number, one)) for number, one in enumerate(asked)]
        await asyncio.sleep(0)
        for task, one in zip(tasks, asked, strict=True):
            if one.leaves:
                task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        while scorer.waiting_rows:  # the last turns may have nobody left to answer
            await asyncio.sleep(0)
        return ends


def rows_of(number: int, one: Asking) -> list[float]:
    """The rows of a request, which no other one has; sixteenths are exact in float32."""
    return [number + place / 16 for place in range(one.count)]


@given(st.lists(ASKING, min_size=1, max_size=30), st.floats(0, CALL_BUDGET_S))
def test_rows_never_cross_requests(asked: list[Asking], row_s: float) -> None:
    """Each gets the scores of its own rows by its own model, or the prior once its time is over, whoever is beside."""
    traffic = Traffic(row_s)
    ends = run(lambda: traffic.run(asked))
    scored_at = {row: look for look, _, call in traffic.calls for row in call}
    for number, (one, end) in enumerate(zip(asked, ends, strict=True)):
        own = rows_of(number, one)
        if isinstance(end, asyncio.CancelledError):
            assert one.leaves
        elif end.is_prior:
            assert end == Scores(values=[PRIOR_SCORE] * one.count, is_prior=True, degraded_reason="deadline")
            assert traffic.look > one.deadline and not set(own) & set(scored_at)
        else:
            assert end == Scores(values=[row / 10 + int(one.version) / 1000 for row in own])
            assert max(scored_at[row] for row in own) <= one.deadline


@given(st.lists(ASKING, min_size=1, max_size=30), st.floats(0, CALL_BUDGET_S))
def test_calls_are_first_in_first_out_and_within_their_budget(asked: list[Asking], row_s: float) -> None:
    """Rows are scored in the order of arrival, each once; a call is one model's, and one request's if it is long."""
    traffic = Traffic(row_s)
    run(lambda: traffic.run(asked))
    scored = [row for _, _, call in traffic.calls for row in call]
    assert scored == [row for number in traffic.arrived for row in rows_of(number, asked[number]) if row in set(scored)]
    for _, version, call in traffic.calls:
        numbers = {int(row) for row in call}
        assert {asked[number].version for number in numbers} == {version}
        assert len(numbers) == 1 or len(call) * row_s <= CALL_BUDGET_S * (1 + 1e-9)  # budgets are summed in floats


async def test_requests_that_follow_one_another_are_scored_in_one_call() -> None:
    """Those of one turn of the loop and those of the next ones share a call, in the order of arrival."""
    calls: list[Matrix] = []
    scorer, model = Scorer(clock=Clock()), model_of("1", calls=calls)

    async def ask(number: int) -> None:
        for _ in range(number // 2 * 2):
            await asyncio.sleep(0)
        await scorer.score(model, rows(number), deadline=FAR)

    await asyncio.gather(*(ask(number) for number in range(8)))
    assert [call[:, 0].tolist() for call in calls] == [[0, 1, 2, 3, 4, 5, 6, 7]]


async def test_a_call_waits_for_nobody_once_its_time_is_over() -> None:
    """However fast they follow one another: who came first is scored then, and the others after it."""
    calls: list[Matrix] = []
    scorer, model = Scorer(clock=(clock := Clock())), model_of("1", calls=calls)
    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(scorer.score(model, rows(number), deadline=FAR)))
        await asyncio.sleep(0)
        clock.now = GATHER_S * (number >= 3)
    await asyncio.gather(*tasks)
    assert calls[0][:, 0].tolist() == [0, 1, 2, 3]


async def test_a_full_call_waits_for_nobody() -> None:
    """One whose rows use up the budget is made at the first turn."""
    scorer = Scorer(clock=Clock())
    task = asyncio.create_task(scorer.score(model_of("1", row_s=CALL_BUDGET_S), rows(1), deadline=FAR))
    for _ in range(3):  # the task begins, its turn comes, it goes on
        await asyncio.sleep(0)
    assert task.done()


async def test_a_lone_request_waits_for_empty_turns_alone() -> None:
    """A request without company is answered after some turns of the loop, and no timer."""
    scorer = Scorer(clock=Clock())
    task = asyncio.create_task(scorer.score(model_of("1"), rows(1), deadline=FAR))
    for _ in range(3 + QUIET_TURNS):  # the task begins, its turns come, it goes on
        await asyncio.sleep(0)
    assert task.done()


async def test_a_call_holds_the_loop_for_its_budget_only() -> None:
    """Rows that would take longer than a call may are scored in further turns, between which the loop goes on."""
    calls: list[Matrix] = []
    model = model_of("1", row_s=CALL_BUDGET_S / 4, calls=calls)
    await asyncio.gather(*(scorer_of(model, 2) for scorer_of in [one_scorer(Scorer())] * 5))
    assert [len(call) for call in calls] == [4, 4, 2]  # 4 rows of a quarter of the budget each are one call


def one_scorer(scorer: Scorer) -> Callable[[Model, int], Coroutine[Any, Any, Scores]]:
    """Asks this scorer for some rows."""
    return lambda model, count: scorer.score(model, rows(*range(count)), deadline=FAR)


async def test_a_request_above_the_budget_is_scored_alone() -> None:
    """One that is longer than a call by itself is a call by itself, rather than never scored."""
    calls: list[Matrix] = []
    model = model_of("1", row_s=CALL_BUDGET_S, calls=calls)
    ask = one_scorer(Scorer())
    await asyncio.gather(ask(model, 1), ask(model, 3), ask(model, 1))
    assert [len(call) for call in calls] == [1, 3, 1]


async def test_past_the_deadline_the_prior_answers() -> None:
    """A request whose turn comes too late is not scored any more, and the others of its turn are."""
    clock = Clock()
    scorer, calls = Scorer(clock=clock), list[Matrix]()
    model = model_of("1", calls=calls)
    late = asyncio.create_task(scorer.score(model, rows(1, 2), deadline=0.5))
    in_time = asyncio.create_task(scorer.score(model, rows(3), deadline=1.0))
    clock.now = 1.0
    assert await late == Scores(values=[PRIOR_SCORE] * 2, is_prior=True, degraded_reason="deadline")
    assert (await in_time).is_prior is False
    assert [len(call) for call in calls] == [1]


async def test_a_full_queue_is_answered_by_the_prior_at_once() -> None:
    """More rows than may wait are refused with the prior; what waits already is scored."""
    scorer, model = Scorer(), model_of("1")
    waiting = asyncio.create_task(scorer.score(model, rows(*range(MAX_WAITING_ROWS)), deadline=FAR))
    await asyncio.sleep(0)
    refused = await scorer.score(model, rows(1), deadline=FAR)
    assert refused == Scores(values=[PRIOR_SCORE], is_prior=True, degraded_reason="overloaded")
    assert (await waiting).is_prior is False


async def test_a_model_that_fails_is_answered_for_by_the_prior() -> None:
    """Every request of the call gets the prior with the reason, and the next call is tried as usual."""
    failing = True

    def predict(given: Matrix) -> list[float]:
        if failing:
            raise ModelError("1", "XGBoost failed")
        return [0.25] * len(given)

    scorer, model = Scorer(), attrs.evolve(model_of("1"), predict=predict)
    both = await asyncio.gather(*(scorer.score(model, rows(1), deadline=FAR) for _ in range(2)))
    assert [(one.is_prior, one.degraded_reason) for one in both] == [(True, "model_failed")] * 2
    failing = False
    assert await scorer.score(model, rows(1), deadline=FAR) == Scores(values=[0.25])


@pytest.mark.parametrize(
    ("predict", "told"),
    [
        pytest.param(lambda given: [][1], [IndexError], id="another-error"),
        pytest.param(lambda given: [0.25] * (len(given) + 1), [], id="one-score-too-many"),
        pytest.param(lambda given: [0.25] * (len(given) - 1), [], id="one-score-too-few"),
    ],
)
async def test_a_model_that_fails_in_an_unforeseen_way_stops_nobody(
    predict: Callable[[Matrix], list[float]], told: list[type[Exception]]
) -> None:
    """Whoever waited for it gets the prior, the scorer goes on with what comes after, and no error is swallowed."""
    errors: list[type[Exception]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, facts: errors.append(type(facts["exception"])))
    scorer, model = Scorer(), model_of("1")
    failing = attrs.evolve(model, predict=predict)
    both = await asyncio.gather(*(scorer.score(failing, rows(1), deadline=FAR) for _ in range(2)))
    assert [one.degraded_reason for one in both] == ["model_failed"] * 2
    assert (await scorer.score(model, rows(1), deadline=FAR)).is_prior is False
    assert errors == told


async def test_scores_of_a_batch_are_those_of_its_rows_alone() -> None:
    """With the real booster too, bit for bit: what a request gets does not depend on its company."""
    calls: list[Matrix] = []
    loaded = load_model("1", artifact(), card(artifact()))
    model = attrs.evolve(loaded, predict=lambda given: (calls.append(given), loaded.predict(given))[1])
    rng = np.random.default_rng(3)
    matrices = [rng.random((count, 3), dtype=np.float32) for count in (1, 20, 3, 50, 7)]
    alone = await asyncio.gather(*(one_matrix(Scorer(), model, matrix) for matrix in matrices))
    scorer = Scorer()
    batched = await asyncio.gather(*(one_matrix(scorer, model, matrix) for matrix in matrices))
    assert [len(call) for call in calls] == [1, 20, 3, 50, 7, 81]
    assert batched == alone


async def one_matrix(scorer: Scorer, model: Model, matrix: Matrix) -> list[float]:
    """The scores of a matrix."""
    return (await scorer.score(model, matrix, deadline=FAR)).values


def as_card(of: bytes, **changes: Any) -> Any:
    """A card that is bound to these bytes."""
    return card(of, artifact_hash=hashlib.sha256(of).hexdigest(), **changes)


def trained(objective: str, *, targets: int = 1, **parameters: Any) -> bytes:
    """A booster that has learned labels of 0 and 1 in its own way."""
    import xgboost

    data = np.random.default_rng(0).random((200, 3), dtype=np.float32)
    matrix = xgboost.DMatrix(data, label=data[:, :targets] > 0.5, nthread=1)
    return bytes(xgboost.train({"objective": objective, "nthread": 1} | parameters, matrix, 5).save_raw("ubj"))


def test_a_loaded_model_says_what_it_is() -> None:
    """It has the version, reads what its card lists, and knows whether it learned from a simulated world."""
    model = load_model("7", artifact(), card(artifact()))
    assert (model.version, model.is_simulated, model.assembler.names) == ("7", True, tuple(i.name for i in INPUTS))
    assert all(0 <= score <= 1 for score in model.predict(rows(0.1, 0.9)))


@pytest.mark.parametrize(
    ("of", "problem"),
    [
        pytest.param(b"{L\x00\x00 no model }", "XGBoost can't read it", id="junk"),
        pytest.param(artifact()[: len(artifact()) // 2], "XGBoost can't read it", id="truncated"),
        pytest.param(trained("reg:squarederror", eta=0.1), "objective .* got 'reg:squarederror'", id="unbounded"),
        pytest.param(trained("multi:softprob", num_class=2), "objective .* got 'multi:softprob'", id="a-score-a-class"),
        pytest.param(trained("binary:logistic", targets=2), "one score from 0 to 1 a row", id="a-score-a-target"),
        pytest.param(trained("binary:logistic", booster="gblinear"), "Inplace predict is not supported", id="no-trees"),
    ],
)
def test_an_artifact_that_can_not_score_is_refused(of: bytes, problem: str) -> None:
    """The reason is one line that names the version; scores that lie in 0 to 1 by chance are not enough."""
    with pytest.raises(ModelError, match=problem) as caught:
        load_model("3", of, as_card(of))
    assert str(caught.value).startswith("model 3: ")
    assert "\n" not in str(caught.value)


def test_a_card_with_other_columns_is_refused() -> None:
    """The number of inputs is that of the booster's columns."""
    names = [one.name for one in INPUTS[:2]]
    with pytest.raises(ModelError, match="it has 3 columns, its card lists 2 inputs"):
        load_model("3", artifact(), card(artifact(), inputs=INPUTS[:2], feature_hash=feature_hash(names)))


def test_columns_in_another_order_are_refused() -> None:
    """A booster that knows its columns by name is never given the values of other ones."""
    import xgboost

    names = [one.name for one in INPUTS]
    data = np.random.default_rng(0).random((50, 3), dtype=np.float32)
    matrix = xgboost.DMatrix(data, label=data[:, 0] > 0.5, feature_names=names[::-1], nthread=1)
    of = bytes(xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, 2).save_raw("ubj"))
    with pytest.raises(ModelError, match="artifact: its column 0 is 'hours_since_sync', its card's 'tip_length_chars'"):
        load_model("3", of, as_card(of))


def test_a_feature_that_is_not_declared_is_refused() -> None:
    """A model of another version of the application is refused with the name of what is missing here."""
    strange = Input(name="mood", source="candidate", unit="count", meaning="How it feels.")
    with pytest.raises(ModelError, match="card: inputs: 'mood' is not declared in this version of the application"):
        load_model("3", artifact(), card(artifact(), inputs=(*INPUTS[:2], strange)))
