"""A plugin of twelve features more, so that the benchmark's model reads 24 of each candidate, as its peer does."""

from models.features import Feature

ADDED = {
    name: Feature(name=name, source="candidate", unit="ratio", meaning="A number for the benchmark.")
    for name in (f"bench_feature_{number}" for number in range(12))
}


def setup(app: object) -> None:
    """Brings the features."""
    for feature in ADDED.values():
        app.add_feature(feature)  # type: ignore[attr-defined]  # app is the plugin, as any setup gets it
