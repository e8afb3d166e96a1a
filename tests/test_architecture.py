"""The design, held: imports point down, each foreign system has its place, every job composes."""

import ast
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ldm_batch.config import JobConfig
from ldm_batch.config.validate import validate
from ldm_batch.run import config_folder

PACKAGE = Path(__file__).parent.parent / "ldm_batch"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
LAYERS = [
    ["records", "errors", "identity", "colour", "environment"],
    ["checks", "cluster_config", "provenance", "config", "validate"],
    [
        "storage_place",
        "storage_local",
        "storage_files",
        "storage_s3_file",
        "storage_s3_client",
        "storage_s3",
    ],
    ["storage", "storage_lease", "sink_arguments"],
    ["decode", "encode", "upscaling"],
    ["footer_check", "footer", "plan_file", "shard_size", "cut", "plan"],
    ["input_images", "rows", "read"],
    ["diffusion"],
    ["generate", "write", "commit", "worker"],
    ["attempts", "schedule", "nodes", "cluster", "progress", "document", "drive"],
    ["status", "contact_sheet", "sweep"],
    ["verify_keys", "verify_object", "verify_images", "verify"],
    ["demo"],
    ["tradeoff_measure", "tradeoff_show", "tradeoff"],
    ["run"],
]
"""From the bottom up: a module imports only what is named before it; a folder counts as one."""
ORDER = [name for layer in LAYERS for name in layer]
PURE = [
    "records",
    "errors",
    "identity",
    "provenance",
    "checks",
    "cluster_config",
    "config",
    "validate",
    "progress",
    "schedule",
    "nodes",
    "shard_size",
]
PLACES = {
    "fsspec": ["storage_files"],
    "s3fs": ["storage_s3", "storage_s3_client"],
    "botocore": ["storage_s3_client"],
    "ray": ["cluster"],
    "hydra": ["run"],
    "omegaconf": ["run"],
    "torch": ["diffusion", "demo"],
    "diffusers": ["diffusion", "demo"],
    "transformers": ["diffusion", "demo"],
    "safetensors": ["diffusion", "demo"],
    "huggingface_hub": ["diffusion"],
}
"""Foreign system -> the only places that may import it."""
LATE = {"torch": ["generate", "tradeoff_measure"]}
"""Who else may import it inside a function, so that it is loaded only when it is needed."""
MAX_LINES = 320
LONGER: dict[str, int] = {}
"""Files that grew past the limit, and how far: to be shortened, not to be joined by others."""
JOBS = sorted((config_folder() / "conf").glob("*.yaml"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def unit(module: str) -> str:
    """The part of the design that a module belongs to: itself, or its folder."""
    return module.split(".")[0]


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


def own_imports(module: str) -> set[str]:
    """Units of ours that a module imports."""
    names = [name.split(".") for name in imports(MODULES[module])]
    ours = {parts[1] for parts in names if parts[0] == "ldm_batch" and len(parts) > 1}
    return {name for name in ours if (PACKAGE / name).is_dir() or name in MODULES}


def loaded_by(module: str) -> set[str]:
    """What importing a module loads, in a process of its own."""
    code = f"import sys, {module}; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return set(ended.stdout.split())


def test_every_module_has_its_place() -> None:
    assert {unit(module) for module in MODULES} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    below = ORDER[: ORDER.index(unit(module))]
    assert own_imports(module) - {unit(module)} <= set(below)


@pytest.mark.parametrize("system", PLACES)
def test_a_foreign_system_is_met_in_its_place(system: str) -> None:
    users = {
        unit(module)
        for module, path in MODULES.items()
        if any(name.split(".")[0] == system for name in imports(path))
    }
    assert users <= {*PLACES[system], *LATE.get(system, [])}


@pytest.mark.parametrize("system", LATE)
def test_late_imports_stand_in_functions(system: str) -> None:
    for module in LATE[system]:
        at_start = [name.split(".")[0] for name in imports(MODULES[module], at_start=True)]
        assert system not in at_start


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_no_third_party(module: str) -> None:
    allowed = {*sys.stdlib_module_names, "ldm_batch"}
    assert {name.split(".")[0] for name in imports(MODULES[module])} <= allowed


def test_importing_the_package_imports_nothing() -> None:
    loaded = loaded_by("ldm_batch")
    assert [name for name in loaded if name.startswith("ldm_batch.")] == []
    assert not {"numpy", "pyarrow", "torch"} & loaded


@pytest.mark.parametrize("module", ["run", "status"])
def test_the_command_does_not_wait_for_torch(module: str) -> None:
    assert not {"torch", "diffusers", "transformers", "ray"} & loaded_by(f"ldm_batch.{module}")


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_small(module: str) -> None:
    num_lines = len(MODULES[module].read_text().splitlines())
    assert num_lines <= LONGER.get(module, MAX_LINES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_owns(module: str) -> None:
    tree = parse(MODULES[module])
    assert ast.get_docstring(tree) or not tree.body


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
    assert ("job_schema", "model") in pairwise(names)


@pytest.mark.parametrize(
    "path", sorted(config_folder().rglob("*.yaml")), ids=lambda path: path.stem
)
def test_configuration_holds_no_code(path: Path) -> None:
    text = path.read_text()
    assert "_target_" not in text
    assert text.startswith("# ")
