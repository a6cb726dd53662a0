"""The package as it is shipped: its public names, what it imports when, its wheel, its types."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge
from edge import errors

ROOT = Path(__file__).parents[1]
HEAVY = {
    "llama_cpp",
    "onnx",
    "onnxruntime",
    "numpy",
    "jinja2",
    "huggingface_hub",
    "httpx2",
    "rich",
    "prompt_toolkit",
    "sqlite3",
}
# From the top down; a module imports only what stands in its own line or below.
LAYERS = [
    {"edge.cli"},
    {"edge.bench", "edge.convert"},
    {"edge.tasks", "edge.measure"},
    {"edge.chat"},
    {"edge.engine", "edge.onnx", "edge.structure"},
    {"edge.choose", "edge.candidate", "edge.hub_choice"},
    {"edge.together"},
    {"edge.planner"},
    {"edge.budget"},
    {"edge.onnx_speed"},
    {"edge.kv", "edge.speed", "edge.artifact"},
    {"edge.encoder_memory"},
    {
        "edge.machine",
        "edge.store",
        "edge.memory",
        "edge.onnx_memory",
        "edge.rates",
        "edge.tuned",
        "edge.evidence",
    },
    {
        "edge.gguf_header",
        "edge.onnx_folder",
        "edge.child",
        "edge.home",
        "edge.kept",
        "edge.peak",
        "edge.sizes",
        "edge.goals",
    },
    {"edge.errors"},
]


def test_the_public_names_are_these():
    assert edge.__all__ == [
        "Chunk",
        "EdgeError",
        "Engine",
        "Host",
        "LoadedModel",
        "Message",
        "Model",
        "Plan",
        "Sampling",
        "Stream",
        "Tool",
        "classify",
        "embed",
        "host",
        "load",
        "plan",
        "pull",
    ]
    for name in edge.__all__:
        assert getattr(edge, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edge.nothing


def imported_by(statement):
    """Top-level modules that are loaded after `statement` ran in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_edge_loads_nothing_heavy():
    assert not imported_by("import edge") & (HEAVY | {"click", "psutil"})


def test_help_loads_no_verb_and_nothing_heavy():
    quietly = "import sys\nsys.stdout = sys.stderr\nrun(['--help'])\nsys.stdout = sys.__stdout__"
    assert not imported_by(f"from edge.cli import run\n{quietly}") & HEAVY


def test_a_plan_and_the_list_of_models_load_no_engine_and_no_network():
    assert not imported_by("import edge\nedge.plan\nedge.pull\nedge.host()") & HEAVY


def layer_of(module):
    for depth, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return depth
    return None


def modules():
    for folder, package in (("edge", "edge"), ("bench", "edge.bench"), ("convert", "edge.convert")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield path, ".".join([package, *(part for part in parts if part != "__init__")])


def test_imports_point_one_way():
    """Lazy ones too: but for `edge.__init__`, which names everything, and the verb that runs the benchmarks."""
    wrong = []
    for path, module in modules():
        own = layer_of(module)
        if own is None:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edge"):
                targets = [
                    node.module if node.module != "edge" else f"edge.{alias.name}" for alias in node.names
                ]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names if alias.name.startswith("edge.")]
            else:
                continue
            wrong += [f"{module} imports {target}" for target in targets if (layer_of(target) or 0) < own]
    assert wrong == []


def test_no_file_outgrew_its_room():
    long = [path for path, _ in modules() if len(path.read_text().splitlines()) > 400]
    assert long == []


def error_classes(root=errors.EdgeError):
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def test_every_error_stands_in_the_tree_with_its_exit_code():
    for error in error_classes():
        (line,) = [line for line in errors.__doc__.splitlines() if f" {error.__name__} " in f"{line} "]
        assert line.split("exit ")[1][0] == str(error.exit_code), line


def test_an_errors_line_is_one_line():
    assert errors.EdgeError("a\nb", hint="do\n  this").line == "a b; do this"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel's content, unpacked as an installation would be."""
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--target", str(target), str(ROOT)]
    # A folder of its own to build in: in the usual one lie modules that are no more
    config = tmp_path_factory.mktemp("build") / "setup.cfg"
    config.write_text(f"[build]\nbuild_base = {config.parent}\n")
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(config)}
    subprocess.run(install, check=True, cwd=target, env=environment)
    return target


@pytest.mark.slow
def test_the_wheel_carries_every_module_the_catalogue_and_the_type_marker(wheel):
    shipped = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    wanted = {f"{module.replace('.', '/')}.py" for _, module in modules()}
    packages = {f"{name.removesuffix('.py')}/__init__.py" for name in wanted}
    assert {name for name in wanted if name not in shipped} <= {
        name.replace("/__init__", "") for name in packages & shipped
    }
    assert {"edge/py.typed", "edge/models/catalog.toml"} <= shipped
    assert not any(name.startswith("tests/") for name in shipped)


@pytest.mark.slow
def test_the_installed_wheel_is_typed(wheel):
    config = f"--config-file={ROOT / 'pyproject.toml'}"
    subprocess.run([sys.executable, "-m", "mypy", config, "-p", "edge"], check=True, cwd=wheel)


@pytest.mark.slow
def test_the_installed_wheel_runs_from_another_folder(wheel):
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); from edge.cli import run; sys.exit(run(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=wheel, capture_output=True, text=True)
    assert "smollm2-135m-instruct" in done.stdout
