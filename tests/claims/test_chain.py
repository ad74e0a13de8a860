"""Chains of numbered files: of those who append the same number, one succeeds."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdbench.claims.chain import FREE, Chain, Entry

MINE, THEIRS = Entry("me", together=3, epochs=2, deaths=1), Entry("them")


@pytest.fixture(params=["links", "no links"])
def chain(request, tmp_path, monkeypatch) -> Chain:
    if request.param == "no links":

        def refuse(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "link", refuse)
    return Chain(tmp_path / "claims")


def test_before_its_first_file_a_chain_is_free(chain):
    assert chain.numbers() == {}
    assert chain.read("a", 0) == FREE


def test_what_was_appended_is_read(chain):
    assert chain.append("a.b", 1, MINE)
    assert chain.append("a.b", 2, FREE)
    assert chain.append("c", 1, THEIRS)
    assert chain.numbers() == {"a.b": 2, "c": 1}
    assert [chain.read("a.b", 1), chain.read("a.b", 2), chain.read("c", 1)] == [MINE, FREE, THEIRS]


def test_a_number_is_taken_once(chain):
    assert chain.append("a", 1, MINE)
    assert not chain.append("a", 1, THEIRS)
    assert chain.read("a", 1) == MINE


def test_of_many_at_once_one_succeeds(chain):
    for number in range(1, 21):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda name, n=number: chain.append("a", n, Entry(str(name))), range(8)))
        assert made.count(True) == 1
        assert chain.read("a", number) == Entry(str(made.index(True)))


def test_nothing_else_stays_in_the_folder(chain):
    chain.append("a", 1, MINE)
    chain.append("a", 1, THEIRS)
    assert sorted(os.listdir(chain.folder)) == ["a.000001"]


def test_a_lost_answer_of_the_file_system_is_a_success(tmp_path, monkeypatch):
    link = os.link

    def link_and_lose_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    assert Chain(tmp_path).append("a", 1, MINE)


def test_an_entry_that_is_not_written_yet_has_an_unknown_owner(chain):
    chain.append("a", 1, MINE)
    chain.path("a", 1).write_bytes(b"")
    assert chain.read("a", 1) == Entry("")


def test_other_errors_are_raised(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        Chain(tmp_path).append("a", 1, MINE)
    assert os.listdir(tmp_path) == []
