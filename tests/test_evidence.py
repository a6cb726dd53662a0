"""What was measured of a file's quality: found by its bytes, kept whole, nothing believed of a damaged file."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tiny import tiny_llama

from edge import evidence
from edge.errors import StoreError
from edge.evidence import MAX_BYTES, PIECE, digest_of, kept, qualities_of, record, row_of
from edge.home import evidence_file


def quality_of(path):
    """The best evidence of a file's quality."""
    return next(iter(qualities_of(path)), None)


@pytest.fixture
def files(tmp_path):
    base, level = tmp_path / "base.gguf", tmp_path / "level.gguf"
    tiny_llama(base)
    tiny_llama(level, seed=1)
    text = tmp_path / "text.txt"
    text.write_text("some words")
    return base, level, text


def row(files, path=None, **figures):
    base, level, text = files
    wanted = {"kld_mean": 0.01, "kld_error": 0.001, "perplexity": 12.0, "top1_agreement": 0.9, **figures}
    return row_of(
        path or level, level="Q4_0", base=base, base_name="base", text=text, tokens=100, context=32, **wanted
    )


def test_what_was_recorded_is_found_by_the_files_bytes_wherever_it_lies(files, tmp_path):
    base, level, _ = files
    record([row(files), row(files, base, kld_mean=None, kld_error=None, top1_agreement=None)])
    moved = tmp_path / "other name.gguf"
    moved.write_bytes(level.read_bytes())
    for path in (level, moved):
        found = quality_of(path)
        assert (found.kld_mean, found.kld_error, found.perplexity, found.top1_agreement) == (
            0.01,
            0.001,
            12,
            0.9,
        )
        assert (found.base, found.text, found.tokens, found.kind) == ("base", "text.txt", 100, "run")
        assert not found.is_base
    own = quality_of(base)
    assert own.is_base
    assert own.kld_mean is None
    assert own.measure == found.measure


def test_a_changed_byte_makes_it_another_file(files):
    _, level, _ = files
    record([row(files)])
    data = bytearray(level.read_bytes())
    data[len(data) // 2] ^= 1  # a file this small is digested whole
    level.write_bytes(data)
    assert quality_of(level) is None
    assert quality_of(level.with_name("missing.gguf")) is None


def test_a_large_files_digest_depends_on_its_beginning_its_end_and_its_length(tmp_path):
    path = tmp_path / "large"
    whole = bytearray(200 * PIECE)
    found = set()
    for change in (None, 0, -1):
        data = bytearray(whole)
        if change is not None:
            data[change] = 1
        path.write_bytes(data)
        found.add(digest_of(path))
    path.write_bytes(whole + b"\0")
    assert len(found | {digest_of(path)}) == 4


def test_a_second_run_replaces_the_first_and_one_with_more_tokens_comes_first(files):
    _, level, _ = files
    record([row(files)])
    record([row(files, kld_mean=0.02)])
    assert [found.kld_mean for found in qualities_of(level)] == [0.02]
    record([replace(row(files, kld_mean=0.03), tokens=5000)])
    assert [found.kld_mean for found in qualities_of(level)] == [0.03, 0.02]
    assert len({found.measure for found in qualities_of(level)}) == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 2, "rows": []}',
        b'{"version": 1, "rows": [{}]}',
        b'{"version": 1, "rows": 3}',
        b" " * (MAX_BYTES + 1),
    ],
)
def test_a_damaged_file_is_none_and_is_written_anew(files, damage):
    path = evidence_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    assert kept() == ()
    assert quality_of(files[1]) is None
    record([row(files)])
    assert quality_of(files[1]).kld_mean == 0.01


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kld_mean", float("nan")),
        ("kld_mean", "small"),
        ("perplexity", float("inf")),
        ("tokens", True),
        ("tokens", 0),
        ("bytes", 1.5),
        ("base", ["x"]),
        ("text", "x" * 5000),
    ],
)
def test_a_row_that_was_never_measured_voids_the_file(files, field, value):
    record([row(files)])
    found = json.loads(evidence_file().read_text())
    found["rows"][0][field] = value
    evidence_file().write_text(json.dumps(found))
    assert kept() == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_files_figures_do_not_void_what_else_was_measured(files, value):
    base, level, _ = files
    record([row(files, base)])
    record([row(files, kld_mean=value, perplexity=value)])
    assert quality_of(base).kld_mean == 0.01
    assert (quality_of(level).kld_mean, quality_of(level).top1_agreement) == (None, 0.9)


def test_runs_that_end_together_are_all_kept(files, monkeypatch):
    real = evidence.kept

    def slowly():
        found = real()
        time.sleep(0.02)
        return found

    monkeypatch.setattr(evidence, "kept", slowly)
    rows = [replace(row(files), tokens=tokens) for tokens in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, [[one] for one in rows]))
    assert sorted(one.tokens for one in real()) == [*range(1, 9)]
    assert {path.name for path in evidence_file().parent.iterdir()} == {"evidence.json"}


def test_what_is_kept_has_a_bound_and_the_oldest_go(files, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_ROWS", 3)
    for tokens in range(1, 6):
        record([replace(row(files), tokens=tokens)])
    assert [one.tokens for one in kept()] == [3, 4, 5]


def test_a_home_that_cannot_be_written_is_one_line(files, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StoreError, match="cannot be kept"):
        record([row(files)])


def certificate(path, **changes):
    from edge import gguf_header

    found = {
        "bytes": path.stat().st_size,
        "source": {"model.safetensors": "ab"},
        "tensor_types": {tensor.name: tensor.type for tensor in gguf_header.read(path).tensors},
        "comparison": {"tokens": 135, "kl_divergence": 0.5, "top1_agreement": 0.8, "cosine": None},
    } | changes
    path.with_suffix(".json").write_text(json.dumps(found))


def test_a_certificate_is_the_weaker_evidence(files):
    _, level, _ = files
    certificate(level)
    found = quality_of(level)
    assert (found.kld_mean, found.top1_agreement, found.tokens, found.kind) == (0.5, 0.8, 135, "certificate")
    record([row(files)])
    assert [one.kind for one in qualities_of(level)] == ["run", "certificate"]


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes": 7},
        {"tensor_types": {}},
        {"source": 3},
        {"comparison": {"tokens": 135, "kl_divergence": None, "top1_agreement": None}},  # an encoder's
        {"comparison": {"tokens": 135, "kl_divergence": "1", "top1_agreement": None}},
        {"comparison": None},
    ],
)
def test_a_certificate_of_another_file_or_of_nothing_counts_for_nothing(files, changes):
    certificate(files[1], **changes)
    assert quality_of(files[1]) is None
