"""The prompt variants of a running worker: the shipped ones, those of plugins and those in PROMPTS_DIR.

Opens the catalog, refuses a DEFAULT_PROMPT_VERSION that nothing has before anything is served, and asks the catalog
once a second, in a thread, to look for changes. What is wrong with a file stops nothing: /health and the log say it.
prompts/catalog.py knows what is served, prompts/selection.py which version answers.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import attrs

from app.settings import Settings
from prompts.catalog import Catalog
from prompts.gateway import Gateway, GatewayConfig
from prompts.registry import SHIPPED
from prompts.releases import RECORD
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
        SettingsError: DEFAULT_PROMPT_VERSION names a version that there is not.
        StoreError: as ``open_catalog``.
    """
    catalog = await asyncio.to_thread(open_catalog, settings, plugin_folders)
    check_defaults(settings.default_prompt_version, catalog.variants, catalog.problems)
    for problem in catalog.problems:
        log.error("prompt variant not served", extra={"fields": {"error": problem}})
    following = asyncio.create_task(_follow(catalog, every_s), name="prompts")
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
    reasons = [*catalog.problems, *default_problems(defaults, catalog.variants)]
    reasons += (
        [f"gateway: model {model} failed lately and is left alone" for model in calls.open_models] if calls else []
    )
    return with_reasons(attrs.evolve(health, prompts=shown), reasons)


async def _follow(catalog: Catalog, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        before = catalog.problems
        if not await asyncio.to_thread(catalog.refresh):
            continue
        log.info("prompt variants changed", extra={"fields": {"versions": ", ".join(catalog.variants)}})
        for problem in catalog.problems:
            if problem not in before:
                log.error("prompt variant not served", extra={"fields": {"error": problem}})
