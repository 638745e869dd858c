"""The prompts of a worker: opened at the start, followed while it runs, recorded at its end."""

import contextlib
import json
from pathlib import Path

import attrs
import pytest
from harness import wait_until
from llm_kit import FakeModel, Reply

from app.prompts import gateway_config, open_catalog, running_catalog, with_prompts
from app.settings import Settings
from models.errors import GatewayError, SettingsError
from prompts.gateway import Gateway
from prompts.registry import Hints, Messages
from streams.health import Health, NatsHealth, PromptHealth, StateHealth

FILE = (
    "---\nversion: {0}\npurpose: A test.\nvariables: {{}}\nlimits:\n  max_chars: 100\n---\nGreet.\n--- user\nHello.\n"
)

NATS = NatsHealth(enabled=False, mode="disabled", connected=False)
LOST = "DEFAULT_PROMPT_VERSION: there is no variant 'v4' any more, v1 serves instead"
HEALTH = Health(status="ok", reasons=[], nats=NATS, state=StateHealth())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a folder of further variants."""
    (tmp_path / "variants").mkdir()
    return Settings(nats_url="", state_dir=tmp_path, prompts_dir=tmp_path / "variants")


def write(folder: Path | None, version: str) -> Path:
    """Writes a variant."""
    assert folder is not None
    file = folder / f"{version}.j2"
    file.write_text(FILE.format(version))
    return file


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The errors in the log."""
    return [str(record.__dict__["fields"]["error"]) for record in caplog.records if record.levelname == "ERROR"]


def test_catalog_has_folders_of_plugins_and_of_the_operator(settings: Settings, tmp_path: Path) -> None:
    """After what ships, in this order; without PROMPTS_DIR there is no third one."""
    (tmp_path / "plugin").mkdir()
    write(tmp_path / "plugin", "terse")
    write(settings.prompts_dir, "mine")
    assert list(open_catalog(settings, [tmp_path / "plugin"]).variants) == ["v1", "v2", "v3", "terse", "mine"]
    assert list(open_catalog(attrs.evolve(settings, prompts_dir=None), []).variants) == ["v1", "v2", "v3"]


async def test_running_catalog_sees_a_new_file(settings: Settings) -> None:
    """A variant that is written while the process runs is served, without anybody asking; one that goes is not."""
    async with running_catalog(settings, [], every_s=0.02) as catalog:
        file = write(settings.prompts_dir, "v4")
        await wait_until(lambda: "v4" in catalog.variants)
        file.unlink()
        await wait_until(lambda: "v4" not in catalog.variants)


async def test_running_catalog_logs_what_is_wrong(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """At the start and later, once each, with the reason."""
    write(settings.prompts_dir, "v1")
    async with running_catalog(settings, [], every_s=0.02):
        assert settings.prompts_dir
        (settings.prompts_dir / "bad.j2").write_text("no variant")
        await wait_until(lambda: len(said(caplog)) == 2)
    first, second = said(caplog)
    assert ("was released" in first, "bad.j2:1" in second) == (True, True)


async def test_running_catalog_records_the_last_release(settings: Settings) -> None:
    """What a model was asked with just before the end is on the disk at the end."""
    write(settings.prompts_dir, "v4")
    async with running_catalog(settings, []) as catalog:
        variant = catalog.release(catalog.variants["v4"])
    assert json.loads((settings.state_dir / "prompts.json").read_text()) == {"v4": variant.content_hash}


async def test_running_catalog_wants_its_defaults(settings: Settings) -> None:
    """A default that there is not stops the start."""
    chosen = attrs.evolve(settings, default_prompt_version=("v1", "v9"))
    with pytest.raises(SettingsError, match="^DEFAULT_PROMPT_VERSION: there is no prompt variant 'v9', only v1"):
        async with running_catalog(chosen, []):
            pass


@pytest.mark.parametrize("is_broken", [False, True], ids=["removed", "broken"])
async def test_default_that_vanished_is_told_and_stops_no_restart(
    settings: Settings, caplog: pytest.LogCaptureFixture, is_broken: bool
) -> None:
    """A worker that goes on without its default says so, and so does the next one, in the log and in /health."""
    file = write(settings.prompts_dir, "v4")
    chosen = attrs.evolve(settings, default_prompt_version=("v1", "v4"))
    async with running_catalog(chosen, [], every_s=0.02) as catalog:
        file.unlink()
        await wait_until(lambda: LOST in said(caplog))
    caplog.clear()
    if is_broken:
        file.write_text("no variant")
    async with running_catalog(chosen, []) as catalog:
        reasons = with_prompts(HEALTH, catalog, chosen, None).reasons
    assert said(caplog) == list(reasons) and reasons[-1] == LOST and len(reasons) == 1 + is_broken


async def test_default_that_never_was_stops_each_start(settings: Settings) -> None:
    """A slip is one however often the worker is started, and whatever other defaults there were."""
    for versions in (("v2",), ("v2", "v9"), ("v9",), ("v2",)):
        chosen = attrs.evolve(settings, default_prompt_version=versions)
        expected = pytest.raises(SettingsError, match="'v9'") if "v9" in versions else contextlib.nullcontext()
        with expected:
            async with running_catalog(chosen, []) as catalog:
                assert "v2" in catalog.variants
    assert list(json.loads((settings.state_dir / "prompt_defaults.json").read_text())) == ["v2"]


async def test_defaults_that_can_not_be_recorded_stop_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged record is a warning, and left as it is; a default that is there is served."""
    record = settings.state_dir / "prompt_defaults.json"
    record.write_text("{")
    async with running_catalog(attrs.evolve(settings, default_prompt_version=("v2",)), []) as catalog:
        assert "v2" in catalog.variants
    [warned] = [one for one in caplog.records if one.levelname == "WARNING"]
    assert "no record of prompts" in warned.__dict__["fields"]["error"] and record.read_text() == "{"


def test_health_has_versions_and_reasons(settings: Settings) -> None:
    """What is served and the default; a bad file, and a default that has vanished, are reasons."""
    file = write(settings.prompts_dir, "v4")
    chosen = attrs.evolve(settings, default_prompt_version=("v4",))
    catalog = open_catalog(chosen, [])
    good = with_prompts(HEALTH, catalog, chosen, None)
    assert (good.status, good.prompts) == ("ok", PromptHealth(versions=["v1", "v2", "v3", "v4"], default=["v4"]))
    unset = with_prompts(HEALTH, catalog, settings, None).prompts
    assert unset and unset.default == ["v1"]
    file.rename(file.with_name("v1.j2")).write_text(FILE.format("v1"))
    catalog.refresh()
    catalog.refresh()
    bad = with_prompts(HEALTH, catalog, chosen, None)
    assert (bad.status, len(bad.reasons), "was released" in bad.reasons[0]) == ("degraded", 2, True)
    assert bad.reasons[1].startswith("DEFAULT_PROMPT_VERSION: there is no variant 'v4' any more")


async def test_health_tells_of_a_gateway_that_refuses(settings: Settings) -> None:
    """A wrong key, which every tip hides behind its template, is a reason, and says what to look at."""
    async with FakeModel(tips=[Reply(status=401)] * 5) as model:
        config = gateway_config(attrs.evolve(settings, litellm_url=model.url))
        assert config
        async with Gateway(config) as gateway:
            for number in range(5):
                messages = Messages(system="Greet.", user=f"{number}")
                with pytest.raises(GatewayError):
                    await gateway.complete(messages, model="tips", hints=Hints(), deadline_s=10)
            health = with_prompts(HEALTH, open_catalog(settings, []), settings, gateway)
    said = "gateway: model tips is refused (status 401): check LITELLM_URL, LITELLM_API_KEY and the model's name"
    assert (health.status, health.reasons) == ("degraded", [said])
