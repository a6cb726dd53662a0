"""The catalogue keeps its form, and is found where edge is installed."""

from __future__ import annotations

import re

import pytest

from edge import store
from edge.store.home import NAME
from edge.store.refs import check_member

ENTRIES = store.catalogue()


def test_the_default_is_in_it():
    default = ENTRIES[store.DEFAULT]
    assert (default.kind, default.licence, default.bytes) == ("gguf", "Apache-2.0", 98_362_432)
    assert default.files[0].sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_every_entry_promises_every_byte(entry):
    assert NAME.fullmatch(entry.name)
    assert entry.kind in ("gguf", "checkpoint", "onnx")
    assert entry.licence
    assert len(entry.about) < 80
    assert entry.files
    for file in entry.files:
        check_member(file.name, file.name)  # raises for a path that leaves, and for a pickle
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.bytes > 0
        assert file.parts


def test_parts_are_put_together_in_order():
    parts = [part.member for part in ENTRIES["gemma-3-270m"].files[0].parts]
    assert [member[-2:] for member in parts] == ["00", "01", "02", "03"]
