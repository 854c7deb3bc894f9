"""The soak, short: everything real, strangers good and bad, two kills; then the books. `make soak` is the long one."""

import os

import pytest

from bench.soak.plan import short
from bench.soak.run import soak

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def test_under_attack_and_killed_the_books_agree_to_the_msat():
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces and a private dockerd")

    assert await soak(short(seed=1)) == []
