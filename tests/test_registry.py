"""Whatever is chosen by name has one name, and an unknown one is answered with the known."""

from __future__ import annotations

import pytest

from edgeprune.devices import DRIVERS
from edgeprune.devices.runtimes import RUNTIMES as WORKERS
from edgeprune.errors import InputError
from edgeprune.importance import CRITERIA
from edgeprune.lower import RUNTIMES, register_runtime
from edgeprune.registry import Registry
from edgeprune.sites.flow import LITERALS, RULES
from edgeprune.solve.registry import SOLVERS

ALL = (DRIVERS, WORKERS, CRITERIA, RUNTIMES, SOLVERS, RULES, LITERALS)


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.kind)
def test_a_name_cannot_be_taken_twice(registry: Registry[object]) -> None:
    name, choice = next(iter(registry.items()))
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(name)(object())
    assert registry[name] is choice


def test_nor_can_that_of_a_runtime_which_comes_with_more() -> None:
    with pytest.raises(ValueError, match="runtime 'executorch' is registered twice"):
        register_runtime("executorch", ".pte")(lambda *call: pytest.fail("never run"))


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    fruit: Registry[str] = Registry("fruit")
    assert fruit.register("pear", "apple")("sweet") == "sweet"
    assert fruit.named("pear") == fruit.named("apple") == "sweet"
    with pytest.raises(InputError, match="^fruit 'plum': unknown; there are: apple, pear$"):
        fruit.named("plum")
