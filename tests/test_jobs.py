"""What users copy from `jobs/`: sound shell, manifests that fit their schemas, real nights."""

import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import DEADLINE_S, digests, objects, wait_until, write_prompts
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from PIL import Image

from ldm_batch.config import JobConfig
from ldm_batch.generate.choose import validate_job as validate
from ldm_batch.run import config_folder

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "jobs"
SCRIPTS = sorted(JOBS.rglob("*.sh"))
SBATCH = JOBS / "slurm" / "txt2img.sbatch"
MANIFESTS = sorted((JOBS / "kuberay").glob("*.yaml"))
BIN = Path(sys.executable).parent
KUBERNETES = "1.34"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would change where a job runs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_", "LDM_"))}
    return {**kept, "PATH": f"{BIN}:{kept['PATH']}", **variables}


def run(*command: Any, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


# Shell


def test_shell_is_sound(tmp_path: Path) -> None:
    ended = run(BIN / "shellcheck", "--severity=style", *SCRIPTS, SBATCH, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("path", [*SCRIPTS, SBATCH], ids=lambda path: path.name)
def test_a_script_says_what_it_does_and_stops_at_errors(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail"
    assert path == SBATCH or path.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("path", [JOBS / "submit.sh", SBATCH], ids=lambda path: path.name)
def test_the_command_that_a_script_shows_composes(path: Path) -> None:
    """`...` stands for a commit sha."""
    shown = path.read_text().partition(f"{path.name} ")[2].partition("\n#\n")[0]
    words = shlex.split(shown.replace("\\\n#", "").replace("=...", "=" + "0" * 40))
    check_overrides(["cluster=auto", *words])


def test_the_labels_that_the_readme_shows_compose() -> None:
    shown = re.findall(r"^ +('cluster\.labels=.*)$", (JOBS / "README.md").read_text(), re.M)
    job = ["cluster=auto", "conf=demo", "source.uri=in", "sink.uri=out"]
    overrides = shlex.split(" ".join(shown))
    labels = [check_overrides([*job, f"++{each}"]).cluster.labels for each in overrides]
    assert labels == [
        {"ray.io/accelerator-type": "H100"},
        {"ray.io/market-type": "!spot", "ray.io/accelerator-type": "in(A100,H100)"},
    ]


@pytest.mark.parametrize("name", ["txt2img_1m.sh", "upscale_1m.sh", "nightly.sh"])
@pytest.mark.parametrize(("given", "missing"), [({}, "SOURCE"), ({"SOURCE": "in"}, "SINK")])
def test_what_is_missing_is_named(
    name: str, given: dict[str, str], missing: str, tmp_path: Path
) -> None:
    ended = run(JOBS / name, cwd=tmp_path, **given)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {missing} is not set: name the ")


@pytest.mark.parametrize(
    ("name", "model"), [("txt2img_1m", "text_to_image"), ("upscale_1m", "super_resolution")]
)
def test_a_production_script_runs_its_job(name: str, model: str, tmp_path: Path) -> None:
    """With the small model that ships, and a dry run: up to the plan."""
    write_prompts(tmp_path, num_files=1, rows_per_file=3)
    if model == "super_resolution":
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        pq.write_table(pa.table({"image": 3 * [file.getvalue()]}), tmp_path / "in" / "0.parquet")
    ended = run(
        JOBS / f"{name}.sh",
        "dry_run=true",
        "cluster=in_process",
        cwd=tmp_path,
        SOURCE="in",
        SINK="out",
        MODEL_PATH=f"demo:{model}",
    )
    assert ended.returncode == 0, ended.stderr
    assert "3 rows" in ended.stdout
    assert not (tmp_path / "out" / "data").exists()


# Nights


def night(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    settings = {"SOURCE": "in", "SINK": "out", "CONF": "machinery", "LOGS": "logs"} | variables
    return run(
        JOBS / "nightly.sh", "cluster=in_process", "rows_per_shard=20", *arguments, cwd=folder,
        **settings,
    )  # fmt: skip


def dataset_name(sink: Path) -> str:
    """What a night calls its files: the last part of the sink, and a hash of all of it."""
    return f"{sink.name}-{hashlib.sha256(str(sink).encode()).hexdigest()[:8]}"


def log(folder: Path) -> str:
    (path,) = (folder / "logs").glob("out-*.log")
    return path.read_text()


def test_two_nights_over_a_folder_that_grows(tmp_path: Path) -> None:
    write_prompts(tmp_path, num_files=1, rows_per_file=60)
    first = night(tmp_path, VERIFY="never")
    assert first.returncode == 0, first.stdout
    before = digests(tmp_path)
    prompts = [f"second night, row {row}" for row in range(60)]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "in" / "1.parquet")
    second = night(tmp_path, VERIFY="always")
    assert second.returncode == 0, second.stdout
    after = digests(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 2 * len(before) == 6
    assert "60 rows, 3 shards" in log(tmp_path)
    assert log(tmp_path).count("right and complete") == 1
    (status,) = (tmp_path / "logs").glob("out-*.json")
    assert json.loads(status.read_text())["num_done"] == 6
    mistaken = night(tmp_path, "seed=5")
    assert mistaken.returncode == 2
    assert "seed: planned 0, now 5" in log(tmp_path)


def test_nights_do_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with (tmp_path / "logs" / f"{dataset_name(tmp_path / 'out')}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ended = night(tmp_path)
    assert ended.returncode == 75
    assert "another run for out" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_datasets_of_one_name_have_nights_of_their_own(tmp_path: Path) -> None:
    """The dry run ends after the plan; one lock for both would have stopped it before."""
    write_prompts(tmp_path, num_files=1, rows_per_file=3)
    (tmp_path / "logs").mkdir()
    with (tmp_path / "logs" / f"{dataset_name(tmp_path / 'a' / 'cats')}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert night(tmp_path, SINK="a/cats").returncode == 75
        other = night(tmp_path, "dry_run=true", SINK="b/cats/", VERIFY="never")
    assert "3 rows" in other.stdout
    names = {path.name.partition("-20")[0] for path in (tmp_path / "logs").glob("*.log")}
    assert names == {dataset_name(tmp_path / "b" / "cats")}


@pytest.mark.parametrize("logs", ["taken", "logs"])
def test_a_night_without_a_place_for_its_logs_cannot_run(logs: str, tmp_path: Path) -> None:
    """No folder can be made, or no lock in it: not the exit code of shards that failed."""
    (tmp_path / "taken").touch()
    (tmp_path / "logs" / f"{dataset_name(tmp_path / 'out')}.lock").mkdir(parents=True)
    ended = night(tmp_path, LOGS=logs)
    assert ended.returncode == 2
    assert f"error: cannot write to {logs}" in ended.stderr


def test_a_night_without_a_cluster_is_worth_another_try(tmp_path: Path) -> None:
    """The job command's own word for it, 75, is passed on; status and verify are not asked."""
    stand_in = tmp_path / "checkout" / "ldm_batch"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "run.py").write_text("raise SystemExit(75)\n")
    shutil.copytree(JOBS, tmp_path / "checkout" / "jobs")
    command = tmp_path / "checkout" / "jobs" / "nightly.sh"
    ended = run(command, cwd=tmp_path, SOURCE="in", SINK="out", LOGS="logs")
    assert ended.returncode == 75
    assert ended.stdout.endswith("out: exit code 75\n")


@pytest.mark.parametrize(
    ("send", "sent", "code"),
    [
        pytest.param(os.kill, signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param(os.killpg, signal.SIGTERM, 143, marks=pytest.mark.long),
        (os.killpg, signal.SIGINT, 130),
    ],
)
def test_an_interrupted_night_is_continued(
    send: Callable[[int, int], None], sent: int, code: int, tmp_path: Path
) -> None:
    """A signal comes to the script alone, or to all that it started, as of Ctrl-C or systemd."""
    write_prompts(tmp_path, num_files=2, rows_per_file=600)
    command = [str(JOBS / "nightly.sh"), "cluster=in_process", "rows_per_shard=5"]
    variables = {"SOURCE": "in", "SINK": "out", "CONF": "machinery", "LOGS": "logs"}
    first = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(objects(tmp_path)) > 0)
    send(first.pid, sent)
    assert first.wait(timeout=DEADLINE_S) == code
    wait_until(lambda: log(tmp_path).endswith(f"out: exit code {code}\n"))
    assert "Traceback" not in log(tmp_path)
    assert 0 < len(objects(tmp_path)) < 240
    assert night(tmp_path, "rows_per_shard=5", VERIFY="never").returncode == 0
    assert len(objects(tmp_path)) == 240


@pytest.mark.parametrize("arguments", [(), ("cluster=in_process",)])
def test_an_address_that_is_no_dashboard_is_not_taken_for_this_machine(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    write_prompts(tmp_path, num_files=1, rows_per_file=3)
    job = ("conf=machinery", "source.uri=in", "sink.uri=out", "dry_run=true", *arguments)
    ended = run(JOBS / "run.sh", *job, cwd=tmp_path, RAY_ADDRESS="head:6379")
    assert ended.returncode == (0 if arguments else 2), ended.stderr
    if not arguments:
        assert ended.stderr.startswith("error: RAY_ADDRESS=head:6379 is no dashboard: name http://")


# Manifests


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML would keep the last without a word."""


def _strict_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice in {keys}"
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _strict_mapping)

RAY_JOB = set(
    [
        "activeDeadlineSeconds",
        "backoffLimit",
        "entrypoint",
        "rayClusterSpec",
        "shutdownAfterJobFinishes",
        "submissionMode",
        "submitterConfig",
        "ttlSecondsAfterFinished",
    ]
)
RAY_CLUSTER = set(
    [
        "authOptions",
        "autoscalerOptions",
        "enableInTreeAutoscaling",
        "headGroupSpec",
        "rayVersion",
        "workerGroupSpecs",
    ]
)
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = HEAD_GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas"}
"""The fields of KubeRay's definitions that are used here; another one is to be looked up first."""
SPOT = ("spot", "preemptible", "capacity-type")
OUR_COMMAND = ["python", "-m", "ldm_batch.run"]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(path.read_text(), _StrictLoader))


def values(node: Any, key: str) -> Iterator[Any]:
    """What stands under a key, at any depth."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
        node = [*node.values()]
    if isinstance(node, list):
        for child in node:
            yield from values(child, key)


def clusters() -> list[Any]:
    """Every Ray cluster of the manifests, with where it stands as its id."""
    found = []
    for path in MANIFESTS:
        for document in documents(path):
            specs = [*values(document, "rayClusterSpec")]
            specs += [document["spec"]] if document["kind"] == "RayCluster" else []
            found += [pytest.param(spec, id=path.stem) for spec in specs]
    return found


def ray_jobs() -> list[Any]:
    found = []
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] in ("RayJob", "RayCronJob"):
                spec = document["spec"]
                found.append(pytest.param(spec.get("jobTemplate", spec), id=path.stem))
    return found


def check_pod(template: dict[str, Any]) -> None:
    """Hold a pod template to Kubernetes' own schema, unknown fields refused."""
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def check_overrides(overrides: list[str]) -> JobConfig:
    """Compose and validate a job as its command would."""
    ConfigStore.instance().store(name="job_schema", node=JobConfig)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        job = OmegaConf.to_object(compose("config", overrides))
    assert isinstance(job, JobConfig)
    validate(job)
    return job


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(AssertionError, match="twice"):
        yaml.load("a: 1\na: 2\n", _StrictLoader)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_manifest_is_of_a_known_kind(path: Path) -> None:
    kinds = {("ray.io/v1", kind) for kind in ("RayJob", "RayCronJob", "RayCluster")}
    for document in documents(path):
        assert (document["apiVersion"], document["kind"]) in kinds | {("batch/v1", "CronJob")}
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z0-9-]{1,40}", document["metadata"]["name"])


@pytest.mark.parametrize("cluster", clusters())
def test_a_cluster_keeps_workers_off_the_head_and_the_head_off_spot_machines(cluster: Any) -> None:
    assert set(cluster) == RAY_CLUSTER
    head = cluster["headGroupSpec"]
    assert set(head) == HEAD_GROUP
    check_pod(head["template"])
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert not {"tolerations", "nodeSelector"} & set(head["template"]["spec"])
    assert "nvidia.com/gpu" not in str(head)
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == WORKER_GROUP
        check_pod(group["template"])
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
        pod = group["template"]["spec"]
        tolerated = " ".join(toleration["key"] for toleration in pod["tolerations"])
        assert any(word in tolerated for word in SPOT)
        assert any(word in " ".join(pod["nodeSelector"]) for word in SPOT)
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("cluster", clusters())
def test_a_cluster_runs_the_ray_that_is_pinned(cluster: Any) -> None:
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().split()
    (image,) = set(values(cluster, "image"))
    assert image == "registry.example/ldm-batch:cuda"


@pytest.mark.parametrize("spec", ray_jobs())
def test_a_ray_job_ends_and_is_cleared_away(spec: Any) -> None:
    assert set(spec) == RAY_JOB
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert 0 < spec["activeDeadlineSeconds"] < 2**31
    assert 0 <= spec["backoffLimit"] <= 3
    assert spec["submissionMode"] == "K8sJobMode"  # the submitter that looks before it submits


@pytest.mark.parametrize("spec", ray_jobs())
def test_the_command_of_a_ray_job_composes_and_fits_its_cluster(spec: Any) -> None:
    command = shlex.split(spec["entrypoint"])
    assert command[:3] == OUR_COMMAND
    job = check_overrides(command[3:])
    assert str(job.sink.uri).startswith("s3://")
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert job.cluster.address == "auto"
    assert job.cluster.gpus_per_worker == 1
    assert job.cluster.min_workers <= (job.cluster.max_workers or 0) == group["maxReplicas"]


def test_the_nightly_cron_job_submits_into_the_cluster_beside_it() -> None:
    cluster, cron = documents(JOBS / "kuberay" / "nightly-cronjob.yaml")
    kubernetes_validate.validate(cron, KUBERNETES, strict=True)
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    job = cron["spec"]["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] < 24 * 3600
    assert job["ttlSecondsAfterFinished"] > 0
    (container,) = job["template"]["spec"]["containers"]
    hopeless = job["podFailurePolicy"]["rules"][0]
    assert (hopeless["action"], hopeless["onExitCodes"]["values"]) == ("FailJob", [2])
    assert [*values(job, "onExitCodes")] == [hopeless["onExitCodes"]]  # 1 and 75 are tried again
    assert job["backoffLimit"] > 0
    assert hopeless["onExitCodes"]["containerName"] == container["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy needs it
    name = cluster["metadata"]["name"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["RAY_ADDRESS"]["value"] == f"http://{name}-head-svc:8265"
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == name
    assert container["command"] == ["/app/jobs/submit.sh"]
    option, *overrides = container["args"]
    assert option == "--submission-id=$(NIGHT)"
    workers = check_overrides(overrides).cluster.max_workers
    assert workers == cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_secrets_stand_elsewhere(path: Path) -> None:
    for document in documents(path):
        assert document["kind"] != "Secret"
        for variable in (v for env in values(document, "env") for v in env):
            is_secret = re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"])
            assert not (is_secret and "value" in variable), variable["name"]
        for account in values(document, "serviceAccountName"):
            assert account == "ldm-batch"
    cluster_name = documents(path)[0]["metadata"]["name"]
    held = {ref["name"] for document in documents(path) for ref in values(document, "secretRef")}
    assert held == {"ldm-batch-credentials"}
    assert cluster_name not in held  # the name of the Secret that KubeRay makes for its token


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_run_without_rights(path: Path) -> None:
    for document in documents(path):
        for containers in values(document, "containers"):
            for container in containers:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
                assert "memory" in container["resources"]["limits"]


# The image


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument of every line of the Dockerfile, continued lines joined."""
    text = (JOBS / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def test_the_dockerfile_is_sound(tmp_path: Path) -> None:
    ended = run(BIN / "hadolint", JOBS / "Dockerfile", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout


def test_everything_that_is_copied_is_there_and_sent_to_the_builder() -> None:
    sources = [
        word for name, text in instructions() if name == "COPY" for word in text.split()[:-1]
    ]
    sent = [
        line.removeprefix("!")
        for line in (JOBS / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert sorted(sources) == sorted(sent)
    assert all((ROOT / source).exists() for source in sources)
    assert {"conf", "ldm_batch", "jobs", "constraints.txt"} <= set(sources)


def test_the_image_starts_nothing_as_nobody_and_holds_no_model() -> None:
    names = [name for name, _ in instructions()]
    assert not {"ENTRYPOINT", "CMD", "ADD"} & set(names)
    assert [text for name, text in instructions() if name == "USER"] == ["1000:1000"]
    assert "HF_HUB_OFFLINE" not in (JOBS / "Dockerfile").read_text()
    stages = [text.split(" AS ")[1] for name, text in instructions() if name == "FROM"]
    assert stages == ["base", "torch-cuda", "torch-cpu", "image"]
    assert ("ARG", "DEVICE=cuda") in instructions()


def test_the_image_installs_what_the_project_depends_on_as_pinned() -> None:
    installs = [text for name, text in instructions() if name == "RUN" and "pip install" in text]
    assert all("--constraint constraints.txt" in text for text in installs)
    (listing,) = [text for text in installs if "tomllib" in text]
    command = shlex.split(listing.partition(">")[0])
    ended = run(sys.executable, *command[1:], cwd=ROOT)
    assert ended.stdout.split() == [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["cluster"],
    ]


def test_the_image_without_cuda_takes_only_torch_from_elsewhere() -> None:
    """PyTorch's index lacks most versions that are pinned; `+cpu` is what PyPI lacks."""
    (install,) = [text for name, text in instructions() if "download.pytorch.org" in text]
    assert "--extra-index-url https://download.pytorch.org/whl/cpu " in install
    listing = shlex.split(install)[-1]
    ended = run("bash", "-c", f"echo {listing}", cwd=ROOT)
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\+cpu\n", ended.stdout)


def test_the_runtime_env_installs_what_the_project_depends_on() -> None:
    """Ray refuses to be installed by its own runtime environment: it is there already."""
    document = yaml.load((JOBS / "runtime_env_install.yaml").read_text(), _StrictLoader)
    constraint, *packages = document["pip"]["packages"]
    assert constraint == "--constraint ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    needed = {re.split(r"[<>=\[]", text)[0] for text in PROJECT["dependencies"]}
    assert set(packages) == needed - {"ray"}
    pinned = (ROOT / "constraints.txt").read_text().lower()
    assert all(f"\n{package.lower()}==" in pinned for package in packages)


# Slurm

SBATCH_OPTIONS = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": "1",
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "mem": r"\d+[KMGT]?",
    "time": r"(\d+-)?\d{1,2}:\d{2}:\d{2}",
    "signal": r"B:USR1@\d+",
    "requeue": None,
    "no-kill": None,
    "open-mode": "append",
    "output": r"(%[xjN]|[\w.-])+",
}
"""Options of the header, and what a well-formed value is; None: takes no value."""


def test_the_sbatch_header_is_well_formed() -> None:
    lines = SBATCH.read_text().splitlines()
    header = [line.split(None, 1)[1] for line in lines if line.startswith("#SBATCH")]
    options = [option.removeprefix("--").partition("=") for option in header]
    assert {name for name, _, _ in options} == set(SBATCH_OPTIONS)
    assert len(options) == len(SBATCH_OPTIONS)
    for name, equals, value in options:
        pattern = SBATCH_OPTIONS[name]
        assert (pattern is None) == (equals == "")
        assert pattern is None or re.fullmatch(pattern, value), name
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    last_option = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert last_option < first_command  # Slurm reads no option after the first command
