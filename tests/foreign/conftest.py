"""The shop, as a project of somebody else's: its own settings, database, broker database and processes."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests.foreign.shop import Shop

collect_ignore = ["project"]  # its tests are run by it

_numbers = count(1)


@pytest.fixture(scope="module")
def make_shop() -> Iterator:
    """`make_shop(SHOP_USE_TZ="0")`: a shop with databases of its own, migrated, whose settings vary by that."""
    shops: list[Shop] = []

    def make(**variation: str) -> Shop:
        shops.append(Shop(next(_numbers), variation))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()
