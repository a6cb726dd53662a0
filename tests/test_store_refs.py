"""What a reference may look like, and what it may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError, RequestError, UnsafeFile
from edge.home import home
from edge.store.home import NAME, name_for
from edge.store.refs import Hub, Local, Name, Url, Wheel, parse

HASH = "ab" * 32


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("smollm2-135m-instruct", Name("smollm2-135m-instruct")),
        ("hf:owner/repo", Hub("owner/repo")),
        ("hf:owner/repo:q4_k_m", Hub("owner/repo", quant="Q4_K_M")),
        ("hf:owner/repo:Q8_0@v1.0", Hub("owner/repo", quant="Q8_0", revision="v1.0")),
        ("hf:owner/repo/a/b.gguf", Hub("owner/repo", path="a/b.gguf")),
        ("hf:o.w/r-1.5/b.gguf@refs/pr/3", Hub("o.w/r-1.5", path="b.gguf", revision="refs/pr/3")),
        ("pypi:pack-age==1.0#pkg/m.gguf", Wheel("pack-age", "1.0", "pkg/m.gguf")),
        (f"https://h.org/a/m.gguf#sha256={HASH.upper()}", Url("https://h.org/a/m.gguf", HASH)),
        (f"http://127.0.0.1:8000/m.gguf#sha256={HASH}", Url("http://127.0.0.1:8000/m.gguf", HASH)),
        (f"http://[::1]/m.gguf#sha256={HASH}", Url("http://[::1]/m.gguf", HASH)),
    ],
)
def test_every_form(text, ref):
    assert parse(text) == ref
    assert parse(str(ref)) == ref


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("./m.gguf", "m.gguf", "sub/../m.gguf", str(tmp_path / "m.gguf"), "~/m.gguf"):
        ref = parse(text)
        assert isinstance(ref, Local)
        assert ref.path.is_absolute()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a\0b",
        "a\nb",
        "hf:owner",
        "hf:../repo",
        "hf:owner/..",
        "hf:owner/re..po",
        "hf:owner/-repo",
        "hf:owner/" + "r" * 96,
        "hf:owner/repo/",
        "hf:owner/repo/../x.gguf",
        "hf:owner/repo/a/../../x.gguf",
        "hf:owner/repo//etc/passwd",
        "hf:owner/repo/a\\..\\x.gguf",
        "hf:owner/repo/.hidden.gguf",
        "hf:owner/repo/x.gguf@../../etc",
        "hf:owner/repo@a..b",
        "hf:owner/repo:",
        "hf:owner/repo:Q4/../..",
        "hf:owner/repo/model.json",
        "hf:owner/repo/m.gguf.partial",
        "pypi:pkg",
        "pypi:pkg==1.0",
        "pypi:pkg>=1.0#m.gguf",
        "pypi:--index-url=evil==1.0#m.gguf",
        "pypi:pkg==1.0#../m.gguf",
        "pypi:pkg==1.0#/m.gguf",
        "pypi:pkg==1.0#a/./m.gguf",
        "pypi:pkg==1.0 --pre#m.gguf",
        "https://h.org/m.gguf",
        "https://h.org/m.gguf#sha256=abc",
        f"http://h.org/m.gguf#sha256={HASH}",
        f"http://127.0.0.1.evil.org/m.gguf#sha256={HASH}",
        f"http://localhost@evil.org/m.gguf#sha256={HASH}",
        f"https://user:secret@h.org/m.gguf#sha256={HASH}",
        f"https://h.org/#sha256={HASH}",
        f"https://h.org/%2e%2e#sha256={HASH}",
        f"https://h.org/a%2f..%2f..#sha256={HASH}",
        f"https://h.org:99999/m.gguf#sha256={HASH}",
        f"https://h.org/m.gguf\\x#sha256={HASH}",
        f"https:///m.gguf#sha256={HASH}",
    ],
)
def test_what_cannot_be_used(text):
    with pytest.raises(RequestError) as error:
        parse(text)
    assert error.value.hint


def test_a_hash_is_asked_for_with_the_reason():
    with pytest.raises(RequestError, match="without a hash") as error:
        parse("https://h.org/m.gguf")
    assert "#sha256=" in error.value.hint


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "pkl", "ckpt", "PKL"])
@pytest.mark.parametrize(
    "form", ["hf:o/r/m.{}", "pypi:p==1#m.{}", "https://h.org/m.{}#sha256=" + HASH, "./m.{}"]
)
def test_a_pickle_is_refused_by_its_name(form, ending):
    with pytest.raises(UnsafeFile) as error:
        parse(form.format(ending))
    assert "safetensors" in error.value.hint


@given(st.text(max_size=60) | st.from_regex(r"(hf|pypi|https)://?[ -~]{0,60}", fullmatch=True))
def test_any_text_is_a_reference_or_an_error_of_ours(text):
    try:
        ref = parse(text)
    except EdgeError:
        return
    if isinstance(ref, Hub | Wheel):
        path = ref.path if isinstance(ref, Hub) else ref.member
        assert ".." not in path.split("/")
        assert not path.startswith("/")
        assert "\\" not in path


@given(st.text(max_size=120))
def test_any_file_name_makes_a_model_name(text):
    assert NAME.fullmatch(name_for(text + ".gguf"))


def test_model_names_read_like_their_files():
    assert name_for("SmolLM2-135M-Instruct.Q4_1.gguf") == "smollm2-135m-instruct.q4_1"
    assert name_for("Big-Q8_0-00001-of-00003.gguf") == "big-q8_0"


def test_the_home_of_a_user_who_is_not_here_is_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("~nobody-here/m.gguf") == Local(tmp_path / "~nobody-here" / "m.gguf")
    monkeypatch.setenv("EDGE_HOME", "~nobody-here")
    assert home() == tmp_path / "~nobody-here"
