"""The prompt variants of a running worker: the shipped ones, those of plugins and those in PROMPTS_DIR.

Opens the catalog, refuses a DEFAULT_PROMPT_VERSION that nothing has before anything is served, and asks the catalog
once a second, in a thread, to look for changes. What is wrong with a file stops nothing: /health and the log say it.
That holds for the file of a default too, and a restart must not be worse than going on: STATE_DIR keeps which defaults
have been served, and one of those may be missing at the start. One that never was is a slip of the pen, and refused.
prompts/catalog.py knows what is served, prompts/selection.py which version answers.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from app.settings import Settings
from models.errors import StoreError
from prompts.catalog import Catalog
from prompts.gateway import Gateway, GatewayConfig, GatewayHealth
from prompts.registry import SHIPPED
from prompts.releases import DEFAULTS_RECORD, RECORD, read_releases, record_releases
from prompts.selection import FALLBACK, check_defaults, default_problems
from prompts.wire import WireConfig
from streams.health import Health, LlmHealth, PromptHealth, with_reasons

log = logging.getLogger(__name__)

POLL_S = 1.0


def open_catalog(settings: Settings, plugin_folders: Sequence[Path]) -> Catalog:
    """Reads every variant; blocks.

    Raises:
        StoreError: the record of released versions can't be read.
    """
    own = [settings.prompts_dir] if settings.prompts_dir else []
    return Catalog([SHIPPED, *plugin_folders, *own], record=settings.state_dir / RECORD)


@contextlib.asynccontextmanager
async def running_catalog(
    settings: Settings, plugin_folders: Sequence[Path], *, every_s: float = POLL_S
) -> AsyncIterator[Catalog]:
    """A catalog that follows its files until the end of the block, and then records what was released last.

    Args:
        every_s: seconds between two looks at the files.

    Raises:
        SettingsError: DEFAULT_PROMPT_VERSION names a version that there is not and, as a default, never was.
        StoreError: as ``open_catalog``.
    """
    catalog = await asyncio.to_thread(open_catalog, settings, plugin_folders)
    await asyncio.to_thread(_check_defaults, settings, catalog)
    _log_problems(_problems(catalog, settings))
    following = asyncio.create_task(_follow(catalog, settings, every_s), name="prompts")
    try:
        yield catalog
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await asyncio.to_thread(catalog.refresh)


def gateway_config(settings: Settings) -> GatewayConfig | None:
    """Where the gateway is and how its answers are kept; None when there is none."""
    if settings.litellm_url is None:
        return None
    wire = WireConfig(url=settings.litellm_url, api_key=settings.litellm_api_key)
    return GatewayConfig(wire=wire, cache_s=settings.llm_cache_s)


def with_prompts(health: Health, catalog: Catalog, settings: Settings, gateway: Gateway | None) -> Health:
    """Adds what is served; a file that is not, a default that has vanished and a model that fails are told."""
    defaults = settings.default_prompt_version
    calls = gateway.health() if gateway else None
    shown = PromptHealth(
        versions=list(catalog.variants),
        default=list(defaults or (FALLBACK,)),
        gateway=LlmHealth(**attrs.asdict(calls)) if calls else None,
    )
    reasons = _problems(catalog, settings)
    reasons += _gateway_reasons(calls) if calls else []
    return with_reasons(attrs.evolve(health, prompts=shown), reasons)


def _check_defaults(settings: Settings, catalog: Catalog) -> None:
    """Refuses a default that never was, and records those that are; blocks.

    A record that can't be used is told, and stops nothing.
    """
    defaults, variants = settings.default_prompt_version, catalog.variants
    record, before = settings.state_dir / DEFAULTS_RECORD, dict[str, str]()
    try:
        before = read_releases(record)
        new = {name: variants[name].content_hash for name in defaults if name in variants and name not in before}
        if new:
            record_releases(record, new)
    except StoreError as error:
        log.warning("defaults can't be recorded", extra={"fields": {"error": str(error)}})
    check_defaults(defaults, variants, before=before, problems=catalog.problems)


def _problems(catalog: Catalog, settings: Settings) -> list[str]:
    """What is wrong with files, and with the defaults."""
    return [*catalog.problems, *default_problems(settings.default_prompt_version, catalog.variants)]


def _log_problems(problems: Iterable[str]) -> None:
    for problem in problems:
        log.error("prompt variant not served", extra={"fields": {"error": problem}})


def _gateway_reasons(calls: GatewayHealth) -> Iterator[str]:
    for model in calls.open_models:
        yield f"gateway: model {model} failed lately and is left alone"
    for model, detail in calls.refused_models.items():
        hint = "check LITELLM_URL, LITELLM_API_KEY and the model's name"
        yield f"gateway: model {model} is refused ({detail}): {hint}"


async def _follow(catalog: Catalog, settings: Settings, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        before = _problems(catalog, settings)
        if not await asyncio.to_thread(catalog.refresh):
            continue
        log.info("prompt variants changed", extra={"fields": {"versions": ", ".join(catalog.variants)}})
        _log_problems(problem for problem in _problems(catalog, settings) if problem not in before)
