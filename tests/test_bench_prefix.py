"""The benchmark of kept prefixes runs, and measures what it says."""

from tiny import tiny_llama

from edge.bench.prefix import lines, prefix


def test_a_prefix_is_taken_from_memory_and_from_disk(tmp_path, one_core):
    model = tiny_llama(tmp_path / "tiny.gguf", ctx=512)
    report = prefix(str(model), tokens=300, threads=1, repetitions=1)
    assert report.reused == (300, 300)
    assert report.from_disk.median == report.cold_s.median / report.disk_s.median
    assert 300 * 2 * 2 * 2 * 32 < report.state_bytes < 200_000  # layers, K and V, two bytes, 32 wide
    assert lines(report).startswith("300 tokens seen before")
