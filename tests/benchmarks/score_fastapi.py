"""The peer of the scoring benchmark: FastAPI on uvicorn, with the same model, body and columns.

Written as such a service usually is: pydantic models of the request, a list of rows, one prediction a request. It reads
no rows of users and logs no decisions.

Usage: score_fastapi.py PORT ARTIFACT COLUMNS_JSON
"""

import json
import sys
import uuid
from pathlib import Path

import numpy as np
import uvicorn
import xgboost
from fastapi import FastAPI
from pydantic import BaseModel


class Candidate(BaseModel):
    """A candidate with its features."""

    id: str
    features: dict[str, float | None]


class ScoreRequest(BaseModel):
    """The body of a request."""

    user_id: str
    request_id: str | None = None
    candidates: list[Candidate]
    profile_features: dict[str, float | None] | None = None


class Score(BaseModel):
    """The score of a candidate."""

    id: str
    score: float


class ScoreAnswer(BaseModel):
    """What is answered."""

    request_id: str
    model_version: str
    scores: list[Score]
    degraded: bool


def make_app(artifact: bytes, columns: list[str]) -> FastAPI:
    """The application."""
    booster = xgboost.Booster(model_file=bytearray(artifact))
    booster.set_param({"nthread": 1})
    app = FastAPI()

    @app.post("/score")
    async def score(request: ScoreRequest) -> ScoreAnswer:
        profile = request.profile_features or {}
        rows = []
        for candidate in request.candidates:
            features = {**profile, **candidate.features}
            rows.append([features.get(name) for name in columns])
        scores = booster.inplace_predict(np.array(rows, dtype=np.float32)).tolist()
        found = [Score(id=c.id, score=value) for c, value in zip(request.candidates, scores, strict=True)]
        request_id = request.request_id or str(uuid.uuid4())
        return ScoreAnswer(request_id=request_id, model_version="1", scores=found, degraded=False)

    return app


def main() -> None:
    """Serves until it is ended."""
    port, artifact, columns = sys.argv[1:]
    app = make_app(Path(artifact).read_bytes(), json.loads(columns))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
