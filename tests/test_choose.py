"""The pick: by memory, by measured speed, by measured quality; nothing claimed that was not measured."""

from dataclasses import replace

import pytest
from recorded_rates import recorded_rates

from edge.candidate import HERE, MAKE, PULL, Candidate, main_type, surely_as_good
from edge.choose import NOT_MEASURED, choose
from edge.errors import DoesNotFit, RequestError
from edge.evidence import Quality
from edge.gguf_header import TYPES, Header, Tensor
from edge.goals import Goal, goal_of
from edge.rates import Kernel
from edge.speed import Speed

MIB = 1 << 20
BITS = {name: 8 * size / elements for name, elements, size in TYPES.values()}
# Nanoseconds a weight for 512 rows and for one: as on a CPU whose kernels for Q4_K are slow
COSTS = {
    "F16": (20, 0.9),
    "Q8_0": (60, 0.5),
    "Q4_K": (50, 0.4),
    "Q6_K": (60, 0.5),
    "IQ4_NL": (20, 0.2),
    "Q4_0": (25, 0.25),
    "Q2_K": (10, 0.1),
}


def rates(marks=()):
    kernels = (
        Kernel(kind, 512, 1, rows, cost * 1e-9, BITS[kind], 0.01)
        for kind, costs in COSTS.items()
        for rows, cost in zip((512, 1), costs, strict=True)
    )
    return recorded_rates(kernels, marks=marks)


def header(*types):
    """A model of matrices of 512 × 1024 in these types."""
    tensors = [
        Tensor(f"blk.{layer}.ffn_up.weight", (512, 1024), kind, 0, int(512 * 1024 * BITS[kind] / 8))
        for layer, kind in enumerate(types)
    ]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": len(types),
        "llama.embedding_length": 512,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 8,
    }
    return Header(3, metadata, tuple(tensors), 32, 0, sum(tensor.bytes for tensor in tensors))


def measured(kld, *, base="base", tokens=1000, kind="run", is_base=False):
    return Quality(kld, 0.0, 10.0, 0.9, base, "wiki", tokens, 512, kind, f"{base} {tokens} {kind}", is_base)


def candidate(level, *types, kld=None, where=HERE, **changes):
    found = header(*types)
    qualities = () if kld is None else (kld if isinstance(kld, Quality) else measured(kld),)
    one = Candidate(
        f"m-{level}.gguf", level, found.file_bytes, found.file_bytes + MIB, where, found, qualities
    )
    return replace(one, **changes)


F16 = candidate("F16", "F16", "F16", kld=measured(None, is_base=True))
Q8_0 = candidate("Q8_0", "Q8_0", "Q8_0", kld=0.001)
Q4_K_M = candidate("Q4_K_M", "Q4_K", "Q6_K", kld=0.02)
IQ4_NL = candidate("IQ4_NL", "IQ4_NL", "IQ4_NL", kld=0.03)
Q4_0 = candidate("Q4_0", "Q4_0", "Q4_0", kld=0.05)
SQUEEZED = candidate("mixed", "IQ4_NL", "Q6_K", kld=0.019)
SMALLEST = "m-IQ4_NL.gguf"  # as is Q4_0, of the same bytes
ALL = (F16, Q8_0, Q4_K_M, IQ4_NL, Q4_0, SQUEEZED)


def pick(candidates, *goals, rates=rates(), budget=1 << 40):  # noqa: B008 - a value, never changed
    return choose(candidates, rates, goal_of(goals), budget=budget)


def unmeasured(*candidates):
    return tuple(replace(one, qualities=()) for one in candidates)


def test_where_others_are_as_good_and_no_larger_their_pace_is_why_not():
    fast = candidate("Q4_K_M", "IQ4_NL", "IQ4_NL", kld=0.02)
    slow = candidate("Q4_K_S", "Q4_K", "Q4_K", kld=0.01)
    found = pick((fast, slow))
    assert found.pick == fast.artifact
    assert "the fastest of what is no larger and no further off than Q4_K_M: Q4_K_S" in found.reason


def test_balanced_is_the_fastest_that_is_no_larger_and_no_worse_than_what_everybody_takes():
    found = pick(ALL)
    assert found.pick == "m-mixed.gguf"
    assert "0.019 against 0.02" in found.reason
    assert NOT_MEASURED not in found.reason
    reasons = {row.level: row.reason for row in found.rows}
    assert "larger than Q4_K_M" in reasons["F16"]
    assert "larger than Q4_K_M" in reasons["Q8_0"]
    assert "further from the base than Q4_K_M" in reasons["IQ4_NL"]
    assert "slower than the pick" in reasons["Q4_K_M"]
    better = replace(IQ4_NL, qualities=(measured(0.02),))
    assert pick((F16, Q4_K_M, better)).pick == "m-IQ4_NL.gguf"
    assert pick((F16, Q4_K_M, IQ4_NL)).pick == "m-Q4_K_M.gguf"


def test_rows_are_what_is_promised_larger_before_smaller():
    found = pick(ALL)
    assert [row.bytes for row in found.rows] == sorted((one.bytes for one in ALL), reverse=True)
    fields = {"artifact", "level", "bytes", "fits", "prefill_tps", "decode_tps", "kld_mean", "reason"}
    assert all(set(vars(row)) == fields | {"memory_bytes", "kld_measure"} for row in found.rows)
    assert {row.level: row.memory_bytes for row in found.rows} == {one.level: one.memory_bytes for one in ALL}
    by_level = {row.level: row for row in found.rows}
    assert by_level["F16"].kld_mean == 0.0
    assert by_level["IQ4_NL"].kld_mean == 0.03
    assert by_level["IQ4_NL"].prefill_tps > by_level["Q4_K_M"].prefill_tps
    assert all(row.reason.startswith("here; ") for row in found.rows)
    assert found.picked.artifact == found.pick


def test_without_a_measured_quality_nothing_of_as_many_bits_takes_its_place():
    found = pick(unmeasured(*ALL))
    assert found.pick == "m-Q4_K_M.gguf"
    assert NOT_MEASURED in found.reason
    assert all(row.kld_mean is None for row in found.rows)
    assert "quality not measured" in next(row.reason for row in found.rows if row.level == "IQ4_NL")


def test_the_reference_alone_measured_claims_nothing_of_the_others():
    found = pick((*unmeasured(IQ4_NL, SQUEEZED), Q4_K_M))
    assert found.pick == "m-Q4_K_M.gguf"


def test_the_same_types_or_a_whole_bit_more_need_no_measurement():
    more = candidate("more", "Q6_K", "Q8_0")
    assert surely_as_good(more, Q4_K_M)
    assert not surely_as_good(Q4_K_M, more)
    assert not surely_as_good(candidate("IQ4_NL", "IQ4_NL", "Q6_K"), Q4_K_M)  # as many bits are not as good
    assert not surely_as_good(candidate("other", "F16", "F16", "F16"), Q4_K_M)
    bounded = replace(more, ceiling={"blk.0.ffn_up.weight": "Q4_0", "blk.1.ffn_up.weight": "Q4_0"})
    assert not surely_as_good(bounded, Q4_K_M)  # made from what had lost it


def test_a_source_is_no_worse_than_what_is_made_from_it():
    source = replace(unmeasured(IQ4_NL)[0], is_source=True)
    made = replace(unmeasured(Q4_K_M)[0], where=MAKE, note="made from IQ4_NL")
    found = pick((source, made))
    assert found.pick == source.artifact
    assert "source itself" in found.reason
    assert found.rows[0].reason.endswith("made from IQ4_NL")
    # nor does rates' absence change that
    assert pick((source, made), rates=None).pick == source.artifact


def test_divergences_of_another_base_or_text_are_not_compared():
    other = replace(IQ4_NL, qualities=(measured(0.001, base="other"),))
    found = pick((F16, Q4_K_M, other))
    assert found.pick == "m-Q4_K_M.gguf"
    row = next(row for row in found.rows if row.level == "IQ4_NL")
    assert row.kld_mean == 0.001
    assert "by another measure" in row.reason
    common, theirs = found.measures
    assert row.kld_measure == theirs
    assert all(row.kld_measure == common for row in found.rows if row.level != "IQ4_NL")
    assert "from base" in found.measures[common]
    assert "from other" in found.measures[theirs]


def test_a_certificate_counts_and_is_called_rough():
    weak = [
        replace(one, qualities=(measured(kld, kind="certificate", tokens=135),))
        for one, kld in ((Q4_K_M, 0.03), (IQ4_NL, 0.02))
    ]
    found = pick(weak)
    assert found.pick == "m-IQ4_NL.gguf"
    assert any("tells only large differences" in note for note in found.notes)


@pytest.mark.parametrize("marks", [("busy",), ("throttled", "wide spread")])
def test_a_measurement_that_is_marked_is_no_evidence(marks):
    found = pick(ALL, rates=rates(marks))
    assert all(row.prefill_tps is row.decode_tps is None for row in found.rows)
    assert any(marks[0] in note and "edge host --measure" in note for note in found.notes)
    assert found.pick == "m-Q4_K_M.gguf"


def test_without_a_measured_host_speeds_are_null_and_a_note_says_what_to_run():
    for goals, expected in (((), "m-Q4_K_M.gguf"), (("quality",), "m-F16.gguf")):
        found = pick(ALL, *goals, rates=None)
        assert found.pick == expected
        assert all(row.prefill_tps is row.decode_tps is None for row in found.rows)
        assert any("edge host --measure" in note for note in found.notes)
    for goal in ("ttft=1", "speed"):
        for candidates in (ALL, unmeasured(*ALL), (IQ4_NL,)):
            with pytest.raises(
                RequestError, match=f"the goal {goal} cannot be judged: .*edge host --measure"
            ):
                pick(candidates, goal, rates=None)


def test_speed_takes_few_bits_only_where_their_quality_was_measured():
    low = candidate("Q2_K", "Q2_K", "Q2_K")
    assert pick((*ALL, low), "speed").pick == "m-IQ4_NL.gguf"
    known = replace(low, qualities=(measured(2.0),))
    found = pick((*ALL, known), "speed")
    assert found.pick == "m-Q2_K.gguf"
    assert "2 nats" in found.reason


def test_quality_is_the_least_divergence_within_the_budget():
    assert pick(ALL, "quality").pick == "m-F16.gguf"
    found = pick(ALL, "quality", budget=F16.memory_bytes - 1)
    assert found.pick == "m-Q8_0.gguf"
    assert not next(row for row in found.rows if row.level == "F16").fits
    # what was not measured, and has more bits in every matrix, is sure to be better; the reason says what is known
    found = pick((*unmeasured(F16), Q4_K_M), "quality")
    assert found.pick == "m-F16.gguf"
    assert NOT_MEASURED in found.reason
    assert pick(unmeasured(*ALL), "quality").pick == "m-F16.gguf"


def test_a_bound_alone_asks_for_the_best_within_it_and_goes_with_an_aim():
    size = f"memory={Q8_0.memory_bytes}"
    assert pick(ALL, size).pick == "m-Q8_0.gguf"
    assert pick(ALL, size, "speed").pick == "m-IQ4_NL.gguf"
    found = pick(ALL, f"ttft={512 / pick((Q8_0,)).picked.prefill_tps * 1.001:.6f}")
    assert found.pick == "m-F16.gguf"  # prefills faster than Q8_0 here


def test_levels_that_cannot_be_made_are_shown_and_not_picked():
    blocked = replace(SQUEEZED, blocked="needs an importance matrix")
    found = pick((F16, Q4_K_M, blocked))
    assert found.pick == "m-Q4_K_M.gguf"
    assert "needs an importance matrix" in next(row.reason for row in found.rows if row.level == "mixed")


def test_a_budget_below_the_smallest_names_it():
    found = pick(ALL, budget=1000)
    assert found.pick is None
    assert not any(row.fits for row in found.rows)
    with pytest.raises(DoesNotFit, match=rf"smallest to run, .* of {IQ4_NL.bytes:,} bytes"):
        _ = found.picked


def test_a_time_that_nothing_reaches_names_the_quickest():
    found = pick(ALL, "ttft=0.000001")
    assert found.pick is None
    with pytest.raises(RequestError, match="the quickest, "):
        _ = found.picked


def test_no_reference_leaves_the_best_and_says_so():
    assert "no Q4_K_M is there" in pick((IQ4_NL, Q8_0)).reason
    found = pick(ALL, budget=IQ4_NL.memory_bytes)
    assert found.pick in ("m-IQ4_NL.gguf", "m-Q4_0.gguf")
    assert "no Q4_K_M fits" in found.reason
    with pytest.raises(RequestError, match="nothing to choose from"):
        pick(())


def test_a_single_file_is_all_there_is_and_an_encoder_is_not_sent_to_a_benchmark_of_text():
    assert pick((IQ4_NL,)).reason == "all there is"
    encoders = [replace(one, generates=False) for one in unmeasured(Q4_K_M, IQ4_NL)]
    found = pick(encoders)
    assert found.reason.endswith("quality not measured")
    assert found.picked.decode_tps is None
    assert found.picked.prefill_tps > 0


def test_files_known_by_their_names_alone_are_ranked_by_their_types():
    files = [
        Candidate(f"m.{level}.gguf", level, int(1e8 * BITS[main_type(level)] / 8), 0, PULL)
        for level in ("Q8_0", "Q4_K_M", "IQ4_NL", "F16")
    ]
    found = pick(files)
    assert found.pick == "m.Q4_K_M.gguf"
    assert NOT_MEASURED in found.reason
    assert pick(files, "speed").pick == "m.IQ4_NL.gguf"
    assert pick(files, "quality").pick == "m.F16.gguf"
    assert all(row.prefill_tps is None for row in found.rows)


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        ("Q4_K_M", "Q4_K"),
        ("q4_0", "Q4_0"),
        ("IQ3_M", "IQ3_S"),
        ("Q6_K", "Q6_K"),
        ("IQ4_XS", "IQ4_XS"),
        ("Q3_K_XS", "Q3_K"),
        ("instruct", ""),
    ],
)
def test_a_levels_main_type(level, kind):
    assert main_type(level) == kind


ONNX = Candidate("m-fp32", "onnx fp32", 10 * MIB, 20 * MIB, HERE)


def reasons(found):
    return {row.level: row.reason for row in found.rows}


def test_the_smallest_without_speeds_says_by_what_it_was_taken():
    """One that was measured may have matrices of two bits: the reason does not deny it."""
    low = candidate("Q2_K", "Q2_K", "Q2_K")
    none = recorded_rates([Kernel("Q5_1", 512, 1, 512, 1e-9, 6.0, 0.01)])
    assert pick(ALL, "speed", rates=none).pick == SMALLEST
    found = pick((*ALL, replace(low, qualities=(measured(2.0),))), "speed", rates=none)
    assert found.picked.level == "Q2_K"
    assert "of those measured or without a matrix under 4 bits" in found.reason
    found = pick((low, replace(low, artifact="m", level="low")), "speed", rates=none)
    assert "under 4 bits" not in found.reason


def test_of_onnx_no_bits_are_claimed():
    said = reasons(pick((*ALL, ONNX), "speed"))["onnx fp32"]
    assert "under 4 bits" not in said
    assert "no speed is known" in said


def test_a_time_that_is_predicted_of_none_is_not_called_a_lack_of_memory():
    found = pick((ONNX,), "ttft=1")
    assert found.reason.startswith("ttft cannot be judged")
    with pytest.raises(RequestError, match="ttft cannot be judged"):
        _ = found.picked


def test_where_only_what_needs_a_matrix_fits_that_is_said_beside_the_smallest_other():
    blocked = replace(candidate("IQ1_S", "Q2_K", "Q2_K"), blocked="needs an importance matrix")
    found = pick((*ALL, blocked), budget=blocked.memory_bytes)
    assert "IQ1_S needs an importance matrix" in found.reason
    assert f"of {IQ4_NL.bytes:,} bytes" in found.reason
    with pytest.raises(RequestError, match="nothing that fits"):
        _ = found.picked


def test_a_reference_that_is_too_slow_is_not_said_not_to_fit():
    fast = pick((F16,)).picked.prefill_tps
    found = pick((F16, Q4_K_M), "balanced", f"ttft={512 / fast * 1.001:.6f}")
    assert found.picked.level == "F16"
    assert "no Q4_K_M is as quick" in found.reason


def test_a_kept_row_without_a_divergence_is_a_quality_not_measured():
    empty = replace(IQ4_NL, qualities=(measured(None),))
    found = pick((empty, replace(ONNX)), "speed")
    assert NOT_MEASURED in found.reason


def test_what_was_made_here_from_a_level_is_no_better_than_it():
    """Nor as good as what has the same types from the checkpoint."""
    metadata = {**header("Q8_0", "Q8_0").metadata, "edge.requantized_from": "Q4_0"}
    made = candidate("Q8_0", "Q8_0", "Q8_0")
    made = replace(made, header=replace(made.header, metadata=metadata))
    source = replace(unmeasured(Q4_0)[0], is_source=True)
    found = pick((made, source), "quality")
    assert found.picked.level == "Q4_0"
    assert "no better, and larger" in reasons(found)["Q8_0"]
    assert not surely_as_good(made, Q4_0)
    assert not surely_as_good(made, Q8_0)
    assert surely_as_good(Q8_0, made)
    known = replace(source, qualities=(measured(0.05),))
    assert pick((made, known), "quality").picked.level == "Q4_0"


def test_goals_are_read():
    assert goal_of([]) == Goal("balanced")
    assert goal_of(["speed", "memory=80MiB"]) == Goal("speed", 80 * MIB)
    assert goal_of(["ttft=0.5s"]) == Goal("quality", None, 0.5)
    assert goal_of(["quality", "quality"]) == Goal("quality")


@pytest.mark.parametrize(
    ("goals", "says"),
    [
        (["speed", "quality"], "speed and quality contradict"),
        (["balanced", "speed"], "contradict"),
        (["memory=1GiB", "memory=2GiB"], "contradict"),
        (["ttft=1", "ttft=2"], "contradict"),
        (["fast"], "'fast' is not a goal"),
        (["speed=3"], "is not a goal"),
        (["memory"], "is not a goal"),
        (["memory=lots"], "is not a size"),
        (["ttft=soon"], "is no time"),
        (["ttft=-1"], "is no time"),
        (["ttft=nan"], "is no time"),
        ([""], "is not a goal"),
    ],
)
def test_goals_that_make_no_sense_are_refused(goals, says):
    with pytest.raises(RequestError, match=says):
        goal_of(goals)


def encoders():
    """A GGUF level each that keeps labels and that may not, and ONNX with the speeds given."""

    def graph(level, tps):
        speed = Speed(tps, None, 0.1, 128, "arithmetic", "", 0.5, None)
        return Candidate(f"m-{level}", f"onnx {level}", MIB, MIB, HERE, generates=False, speed=speed)

    metadata = {key.replace("llama", "bert"): value for key, value in F16.header.metadata.items()}
    metadata["general.architecture"] = "bert"
    files = [
        replace(one, generates=False, qualities=(), header=replace(one.header, metadata=metadata))
        for one in (F16, Q8_0, Q4_0)
    ]
    return files, graph


@pytest.mark.parametrize(("tps", "best"), [(1.0, "m-F16.gguf"), (1e9, "m-int8")])
def test_of_an_encoder_the_fastest_that_keeps_labels_is_taken_whichever_backend_runs_it(tps, best):
    files, graph = encoders()
    found = pick([*files, graph("int8", tps), graph("int4", 2 * tps)])
    assert found.pick == best
    assert "of the levels that keep labels" in found.reason
    other = "onnx int8" if best.endswith("gguf") else "F16"
    assert f"of {other}, the other backend's fastest" in found.reason
    rows = {row.level: row for row in found.rows}
    assert rows["onnx int8"].prefill_tps == tps
    assert all(row.decode_tps is row.kld_mean is None for row in found.rows)
    assert "its labels may differ" in rows["onnx int4"].reason
    assert "its labels may differ" in rows["Q4_0"].reason
    assert "slower than the pick" in rows["Q8_0"].reason


def test_an_encoder_on_a_host_that_was_not_measured_is_the_smallest_that_keeps_labels():
    files, graph = encoders()
    found = pick([*files, replace(graph("int8", 1.0), bytes=1)], rates=None)
    assert found.pick == "m-int8"
    assert "as no speed is known" in found.reason


def test_speeds_of_onnx_are_no_evidence_either_where_the_measurement_is_none():
    _, graph = encoders()
    found = pick([graph("int8", 1.0)], rates=rates(("busy",)))
    assert found.rows[0].prefill_tps is None
