"""Scores the candidates of requests with a gradient-boosted model, those that wait together in one call.

``load_model`` makes a booster of an artifact's bytes and tries it out; ``Scorer`` holds the one that serves and may be
given another at any time. A request keeps the model that it was decoded for, so no answer mixes two. Each call costs as
much as the rows of some requests, so it stays open while others come: it is made once ``QUIET_TURNS`` turns of the
event loop have brought nobody (one takes a request from its socket to here), or its budget is used up, or ``GATHER_S``
after the first one came. A request without company waits for those turns, which are microseconds, and for no timer.

Scoring runs on the loop's own thread: a call of 20 rows takes a tenth of a millisecond, whereas a thread that has
scored waits for the interpreter's lock, up to 5 ms a time, while the loop is busy. Requests are put into calls that are
expected to hold the loop for ``CALL_BUDGET_S`` at most; one request is never cut. A card, an alias and a file are none
of this module's business: models/registry.py has them, app/serving.py brings them here.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import msgspec
import numpy as np

from models.card import Card
from models.errors import ModelError
from models.features import FEATURES, Assembler, Feature, Matrix
from models.scoring import PRIOR_SCORE, ScoreRequest, request_decoder

log = logging.getLogger(__name__)

CALL_BUDGET_S = 0.002
GATHER_S = 0.002
QUIET_TURNS = 2
MAX_WAITING_ROWS = 20_000
OBJECTIVES = ("binary:logistic", "reg:logistic", "binary:hinge")
"""What a booster may have learned: with these its scores are from 0 to 1 whatever the row."""
_TRIAL_ROWS = 200
_TRIALS = 5


@attrs.frozen(kw_only=True, eq=False)
class Model:
    """A version that can answer.

    Args:
        version: the registry's.
        predict: scores the rows of a (n, n_features) float32 matrix, one from 0 to 1 a row, in their order; holds no
            state of a call, and raises ModelError.
        row_s: seconds a row takes, as its trial has shown.
    """

    version: str
    card: Card
    predict: Callable[[Matrix], list[float]]
    assembler: Assembler
    decode: Callable[[bytes], ScoreRequest]
    row_s: float

    @property
    def is_simulated(self) -> bool:
        """Whether it learned from a simulated world."""
        return self.card.training.is_simulated


def load_model(version: str, artifact: bytes, card: Card, declared: Mapping[str, Feature] = FEATURES) -> Model:
    """Makes a model of XGBoost's own format; blocks for some milliseconds, so call it in a thread.

    Raises:
        ModelError: the artifact is no booster, needs other columns than the card lists or has them in another order,
            reads a feature that is not declared here, or may give scores outside of 0 to 1.
    """
    import xgboost  # it takes a quarter of a second, which a process without models never spends

    errors = (xgboost.core.XGBoostError, ValueError, TypeError)
    try:
        booster = xgboost.Booster(model_file=bytearray(artifact))
        booster.set_param({"nthread": 1})
        columns = booster.num_features()
        objective = msgspec.json.decode(booster.save_config())["learner"]["objective"]["name"]
    except errors as error:
        raise ModelError(version, f"artifact: XGBoost can't read it ({_first_line(error)})") from error

    def predict(rows: Matrix) -> list[float]:
        try:
            scores: list[float] = booster.inplace_predict(rows).tolist()
        except errors as error:
            raise ModelError(version, f"XGBoost failed ({_first_line(error)})") from error
        return scores

    names = [column.name for column in card.inputs]
    for problem in _booster_problems(columns, booster.feature_names or names, names, objective):
        raise ModelError(version, f"artifact: {problem}")
    try:
        assembler = Assembler(names, declared)
    except ModelError as error:
        raise ModelError(version, f"card: inputs: {error.problem}") from error
    return Model(
        version=version,
        card=card,
        predict=predict,
        assembler=assembler,
        decode=request_decoder(assembler),
        row_s=_try_out(version, predict, len(names)),
    )


def _booster_problems(columns: int, own: Sequence[str], listed: Sequence[str], objective: str) -> Iterator[str]:
    """What keeps a booster from scoring its card's inputs: columns in another number or order, or its objective."""
    if columns != len(listed):
        yield f"it has {columns} columns, its card lists {len(listed)} inputs"
    for column, (name, expected) in enumerate(zip(own, listed, strict=False)):
        if name != expected:  # each value would be taken for another feature's
            yield f"its column {column} is {name!r}, its card's {expected!r}"
    if objective not in OBJECTIVES:  # its scores may lie in the range for some rows, and leave it for others
        yield f"expected the objective {' or '.join(OBJECTIVES)}, got {objective!r}"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _try_out(version: str, predict: Callable[[Matrix], list[float]], columns: int) -> float:
    """Scores made-up rows, so that the first request is no slower than the next; seconds of the processor a row.

    The shortest of some trials, in this thread's own time: while a process starts others want the processor, too, and a
    cost that is too high would cut calls that could have been one.
    """
    rows = np.random.default_rng(0).uniform(-1, 1, (_TRIAL_ROWS, columns)).astype(np.float32)
    rows[::7] = np.nan
    scores, times_s = predict(rows), list[float]()
    for _ in range(_TRIALS):
        started = time.thread_time()
        predict(rows)
        times_s.append(time.thread_time() - started)
    is_fitting = len(scores) == _TRIAL_ROWS and all(isinstance(score, float) and 0 <= score <= 1 for score in scores)
    if not is_fitting:
        raise ModelError(version, "artifact: expected one score from 0 to 1 a row")
    return min(times_s) / _TRIAL_ROWS


@attrs.frozen(kw_only=True)
class Scores:
    """What a request gets: a score a candidate, in request order.

    Args:
        is_prior: they are the constant prior's, and no model's.
        degraded_reason: why the answer is less than it could be.
    """

    values: list[float]
    is_prior: bool = False
    degraded_reason: str | None = None


def prior_scores(count: int, reason: str) -> Scores:
    """The constant prior: ``PRIOR_SCORE`` for each candidate."""
    return Scores(values=[PRIOR_SCORE] * count, is_prior=True, degraded_reason=reason)


@attrs.frozen(kw_only=True, eq=False)
class _Waiting:
    model: Model
    matrix: Matrix
    deadline: float
    answer: asyncio.Future[Scores]


class Scorer:
    """Scores requests of one process.

    Args:
        clock: seconds on a monotonic clock; deadlines are instants of it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.model: Model | None = None
        self.waiting_rows = 0
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._is_scheduled = False
        self._has_come = False
        self._quiet_turns = 0
        self._open_until = 0.0

    def has_room(self, row_count: int) -> bool:
        """Whether so many rows may wait beside those that do."""
        return self.waiting_rows + row_count <= MAX_WAITING_ROWS

    async def score(self, model: Model, matrix: Matrix, *, deadline: float) -> Scores:
        """Scores one request with the model that it was decoded for, beside whatever waits with it.

        Args:
            matrix: (n_candidates, n_features) float32, as ``model.assembler`` makes it.
            deadline: an instant of the scorer's clock.

        Returns:
            A score a row; the prior with a reason when too much waits already, the deadline has passed before its turn,
            or the model fails. A request that is cancelled is scored no more.
        """
        rows = len(matrix)
        if not self.has_room(rows):
            return prior_scores(rows, "overloaded")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(model=model, matrix=matrix, deadline=deadline, answer=loop.create_future())
        self._waiting.append(waiting)
        self.waiting_rows += rows
        self._has_come = True
        if not self._is_scheduled:
            self._is_scheduled = True
            self._open_until = self._clock() + GATHER_S
            loop.call_soon(self._turn)
        return await waiting.answer

    def _turn(self) -> None:
        """Scores as much as fits into one call; the rest gets the next turn, after whatever else the loop has to do."""
        try:
            if not self._stays_open() and (taken := self._take()):
                self._answer(taken)
        finally:  # whatever becomes of this call, those that still wait get their turn
            self._is_scheduled = bool(self._waiting)
            if self._is_scheduled:
                asyncio.get_running_loop().call_soon(self._turn)

    def _stays_open(self) -> bool:
        """Whether the call may get more company: somebody came within the last turns, and there is room and time."""
        self._quiet_turns = 0 if self._has_come else self._quiet_turns + 1
        self._has_come = False
        cost_s = self.waiting_rows * self._waiting[0].model.row_s
        return self._quiet_turns < QUIET_TURNS and cost_s < CALL_BUDGET_S and self._clock() < self._open_until

    def _take(self) -> list[_Waiting]:
        """The first that waits, and those behind it for the same model while the call stays within its budget."""
        now = self._clock()
        taken: list[_Waiting] = []
        budget_s = CALL_BUDGET_S
        while self._waiting:
            waiting = self._waiting[0]
            rows = len(waiting.matrix)
            if waiting.answer.done():  # its client has left
                pass
            elif now > waiting.deadline:
                waiting.answer.set_result(prior_scores(rows, "deadline"))
            else:
                cost_s = rows * waiting.model.row_s
                if taken and (waiting.model is not taken[0].model or cost_s > budget_s):
                    break
                budget_s -= cost_s
                taken.append(waiting)
            self._waiting.popleft()
            self.waiting_rows -= rows
        return taken

    def _answer(self, taken: Sequence[_Waiting]) -> None:
        """One call for all; a model that fails is answered for by the prior, and the loop tells an unforeseen error."""
        values: list[float] = []
        try:
            matrices = [waiting.matrix for waiting in taken]
            rows = matrices[0] if len(matrices) == 1 else np.concatenate(matrices)
            values = taken[0].model.predict(rows)
        except ModelError as error:
            log.error("scoring failed", extra={"fields": {"error": str(error)}})
        finally:
            self._hand_out(taken, values)

    def _hand_out(self, taken: Sequence[_Waiting], values: list[float]) -> None:
        """Gives each request its own part of the scores; without one for each row nobody's part is known."""
        if len(values) != sum(len(waiting.matrix) for waiting in taken):
            for waiting in taken:
                waiting.answer.set_result(prior_scores(len(waiting.matrix), "model_failed"))
            return
        start = 0
        for waiting in taken:
            end = start + len(waiting.matrix)
            waiting.answer.set_result(Scores(values=list(values[start:end])))
            start = end
