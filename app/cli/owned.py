"""The store with its lock held, for commands that change it while no worker runs."""

import contextlib
from collections.abc import Iterator

import click

from app.main import check_state_dir
from app.settings import Settings
from state.sqlite import SqliteStore
from state.store import store_path
from streams.locks import LockFile
from streams.presence import Presence
from streams.service import OWNER_LOCK


@contextlib.contextmanager
def owned_store(settings: Settings) -> Iterator[SqliteStore]:
    """The store, with its lock held, so that no worker runs; a process that ended without warning stays noted.

    Raises:
        click.ClickException: a worker owns STATE_DIR, or stands by.
        StoreError: the store can't be used.
    """
    check_state_dir(settings.state_dir)
    with contextlib.closing(LockFile.open(settings.state_dir / OWNER_LOCK)) as lock:
        if not lock.try_exclusive():
            raise click.ClickException("a worker owns STATE_DIR: stop it first")
        presence = Presence(settings.state_dir)
        with presence.held():
            alive = presence.alive()
            if len(alive) > 1:  # it stands by, and serves the tables that all workers share
                raise click.ClickException(f"{len(alive) - 1} workers of STATE_DIR stand by: stop them first")
            store = SqliteStore(store_path(settings.state_dir), runner=presence.name, alive=alive)
            try:
                store.claim(settings.nats_durable_prefix)
                yield store
            finally:
                if not store.was_unclean:
                    store.end_clean()
                store.close()
