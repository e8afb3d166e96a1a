"""The design, held: imports point down, each foreign system has its place, every job composes."""

import ast
import importlib
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ldm_batch.__main__ import COMMANDS
from ldm_batch.config import JobConfig
from ldm_batch.generate.choose import validate_job as validate
from ldm_batch.run import config_folder

PACKAGE = Path(__file__).parent.parent / "ldm_batch"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
ORDER = [
    "demo",
    "run",
    "drive",
    "commands",
    "dataset",
    "cluster",
    "worker",
    "plan",
    "generate",
    "diffusion",
    "read",
    "write",
    "storage",
    "config",
    "progress",
    "columns",
    "made_as",
    "records",
    "identity",
    "errors",
    "versions",
]
"""The listing from the top down: what is named imports only what is named after it."""
DOOR = "__main__"
"""Knows commands by their names only."""
PURE = [
    "columns",
    "made_as",
    "records",
    "errors",
    "identity",
    "config",
    "progress",
    "cluster.attempts",
    "cluster.schedule",
    "cluster.nodes",
]
PLACES = {
    "fsspec": ["storage"],
    "aiohttp": ["storage"],
    "s3fs": ["storage.s3_client"],
    "botocore": ["storage.s3_client"],
    "gcsfs": ["storage.gcs"],
    "adlfs": ["storage.azure"],
    "azure": ["storage.azure"],
    "ray": ["cluster"],
    "hydra": ["run"],
    "omegaconf": ["run"],
    "torch": ["diffusion", "demo"],
    "diffusers": ["diffusion", "demo"],
    "transformers": ["diffusion", "demo"],
    "safetensors": ["diffusion", "demo"],
    "huggingface_hub": ["diffusion"],
    "yaml": ["diffusion.models.original.settings", "run.job_files"],
    "tqdm": ["diffusion"],
    "simplejpeg": ["read.jpeg_scan"],
    "pillow_heif": ["read.decoders"],
}
"""Foreign system -> the only modules, or folders, that may import it."""
LATE = {"torch": ["generate", "commands.tradeoff.measure"]}
"""Who else may import it inside a function, so that it is loaded only when it is needed."""
MAX_ENTRIES = 25
MAX_LINES = 320
MAX_FUNCTION_LINES = 50
"""Of a function without its docstring: what fits a screen."""
JOBS = sorted((config_folder() / "conf").glob("*.yaml"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def unit(module: str) -> str:
    """The entry of the listing that a module belongs to: itself, or its folder."""
    return module.split(".")[0]


def is_in(module: str, place: str) -> bool:
    """Tell whether a module is a place or stands below it."""
    return module == place or module.startswith(f"{place}.")


def imports(path: Path, *, at_start: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, at any depth or only where importing it does."""
    tree = parse(path)
    nodes = [*_outside_functions(tree)] if at_start else [*ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield child
            yield from _outside_functions(child)


@cache
def own_imports(module: str) -> frozenset[str]:
    """Modules of ours that a module imports."""
    found = set()
    for name in imports(MODULES[module]):
        parts = name.split(".")
        if parts[0] == "ldm_batch":
            longest = (".".join(parts[1:stop]) for stop in range(len(parts), 1, -1))
            ours = (n for n in longest for n in (n, f"{n}.__init__") if n in MODULES)
            found.update(islice(ours, 1))
    return frozenset(found - {module})


def loaded_by(*modules: str) -> set[str]:
    """What importing modules loads, in a process of its own."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return set(ended.stdout.split())


def test_every_module_has_its_place() -> None:
    assert {unit(module) for module in MODULES} == {*ORDER, DOOR}
    assert len(ORDER) == len(set(ORDER))


def test_the_listing_fits_a_screen() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    at = -1 if module == DOOR else ORDER.index(unit(module))
    below = {unit(name) for name in own_imports(module)} - {unit(module)}
    assert below <= set(ORDER[at + 1 :])
    assert module != DOOR or not below


def test_no_module_imports_itself_by_a_detour() -> None:
    left = {module: set(own_imports(module)) for module in MODULES if "__init__" not in module}
    while leaves := [module for module, names in left.items() if not names & left.keys()]:
        for module in leaves:
            del left[module]
    assert not left, "these import each other in a circle"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_the_face_of_the_package(module: str) -> None:
    """It hands on what stands above: whoever asks it for something asks upwards."""
    ours = [name for name in imports(MODULES[module]) if name.split(".")[0] == "ldm_batch"]
    places = {f"ldm_batch.{name.removesuffix('.__init__')}" for name in MODULES}
    assert not [name for name in ours if not {name, name.rpartition(".")[0]} & places]


@pytest.mark.parametrize("system", PLACES)
def test_a_foreign_system_is_met_in_its_place(system: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == system for name in imports(path))
    }
    places = [*PLACES[system], *LATE.get(system, [])]
    assert not {module for module in users if not any(is_in(module, place) for place in places)}


@pytest.mark.parametrize("system", LATE)
def test_late_imports_stand_in_functions(system: str) -> None:
    for module in [m for m in MODULES if any(is_in(m, place) for place in LATE[system])]:
        at_start = [name.split(".")[0] for name in imports(MODULES[module], at_start=True)]
        assert system not in at_start


@pytest.mark.parametrize("module", [m for m in MODULES if any(is_in(m, p) for p in PURE)])
def test_pure_modules_import_no_third_party(module: str) -> None:
    allowed = {*sys.stdlib_module_names, "ldm_batch"}
    assert {name.split(".")[0] for name in imports(MODULES[module])} <= allowed


def test_importing_the_package_imports_nothing() -> None:
    loaded = loaded_by("ldm_batch")
    assert [name for name in loaded if name.startswith("ldm_batch.")] == []
    assert not {"numpy", "pyarrow", "torch"} & loaded


def test_latent_diffusion_knows_nothing_of_datasets() -> None:
    """diffusion/ may be used without the libraries of files, clusters and command lines."""
    modules = [f"ldm_batch.{name}" for name in MODULES if unit(name) == "diffusion"]
    loaded = loaded_by(*(name.removesuffix(".__init__") for name in modules))
    assert "torch" in loaded
    assert not {"pyarrow", "ray", "fsspec", "botocore", "hydra"} & loaded


@pytest.mark.parametrize("module", ["run", "commands.status", "commands.dataset_view", "__main__"])
def test_the_command_does_not_wait_for_torch(module: str) -> None:
    assert not {"torch", "diffusers", "transformers", "ray"} & loaded_by(f"ldm_batch.{module}")


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_small(module: str) -> None:
    num_lines = len(MODULES[module].read_text().splitlines())
    assert num_lines <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_functions_fit_a_screen(module: str) -> None:
    too_long = []
    for node in ast.walk(parse(MODULES[module])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = ast.get_docstring(node) is not None
            first = node.body[0]
            docstring = range(first.lineno, end_of(first) + 1) if has_docstring else ()
            if end_of(node) - node.lineno + 1 - len(docstring) > MAX_FUNCTION_LINES:
                too_long.append(node.name)
    assert not too_long


def end_of(node: ast.stmt) -> int:
    """The last line of a statement."""
    return node.end_lineno or node.lineno


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name: str) -> None:
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_owns(module: str) -> None:
    tree = parse(MODULES[module])
    assert ast.get_docstring(tree) or not tree.body


def test_one_name_is_one_class() -> None:
    names = Counter(
        node.name
        for path in MODULES.values()
        for node in parse(path).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, number in names.items() if number > 1] == []


def test_file_names_tell_what_is_in_them() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager", "core"}
    assert not {module.split(".")[-1] for module in MODULES} & vague


# Jobs


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_runs_by_its_own_command(path: Path) -> None:
    """The second line of a job is the command that runs it; `...` stands for a commit sha."""
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_"
    command = shlex.split(second.removeprefix("# "))
    assert command[:4] == ["python", "-m", "ldm_batch.run", f"conf={path.stem}"]
    overrides = [word.replace("=...", "=" + "0" * 40) for word in command[3:]]
    ConfigStore.instance().store(name="job_schema", node=JobConfig)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        job = OmegaConf.to_object(compose("config", overrides))
    assert isinstance(job, JobConfig)
    assert job.name == path.stem
    validate(job)


def test_the_job_wins_over_the_base() -> None:
    """`_self_` before `conf`, or config.yaml would silently beat the job file."""
    defaults = OmegaConf.load(config_folder() / "config.yaml").defaults
    names = [name if isinstance(name, str) else next(iter(name)) for name in defaults]
    assert names.index("_self_") < names.index("conf")
    assert ("job_schema", "task") in pairwise(names)


@pytest.mark.parametrize(
    "path", sorted(config_folder().rglob("*.yaml")), ids=lambda path: path.stem
)
def test_configuration_holds_no_code(path: Path) -> None:
    text = path.read_text()
    assert "_target_" not in text
    assert text.startswith("# ")
