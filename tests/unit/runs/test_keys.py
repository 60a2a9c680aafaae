import random

import pytest

from selfalign.runs import keys as room
from selfalign.runs.keys import KeySet


@pytest.mark.parametrize("recent", [1, 7, 65_536])
def test_a_key_is_new_once_whenever_it_comes_again(monkeypatch, recent):
    monkeypatch.setattr(room, "_RECENT", recent)
    draw = random.Random(recent)  # noqa: S311 -- an order, no secret
    known, expected = KeySet(), set()
    for number in (draw.randrange(400) for _ in range(1000)):
        assert known.add(f"key {number}") == (number not in expected)
        expected.add(number)
        assert len(known) == len(expected)


def test_a_million_keys_take_eight_bytes_each(monkeypatch):
    monkeypatch.setattr(room, "_RECENT", 1000)
    known = KeySet()
    assert all(known.add(str(number)) for number in range(10_000))
    held = [value for value in vars(known).values() if len(value)]
    assert [(array.nbytes, array.itemsize) for array in held] == [(80_000, 8)]
