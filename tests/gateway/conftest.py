"""The real LiteLLM proxy, once for all tests of this folder."""

from collections.abc import Iterator

import pytest
from proxy_kit import Proxy, running_proxy


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy, which is started by the first test and ended after the last one."""
    with running_proxy(tmp_path_factory.mktemp("proxy")) as running:
        yield running
