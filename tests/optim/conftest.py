from __future__ import annotations

import pytest
from ranks import Ranks
from torch import distributed


@pytest.fixture(scope="session")
def ranks():
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this build of torch has no gloo, by which the processes of these tests talk")
    pool = Ranks()
    yield pool
    pool.stop()
