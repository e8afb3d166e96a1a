"""Options of stores: a closed list for each kind of URL, never a secret, given to the library."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from s3_server import BUCKET

import ldm_batch
from ldm_batch.config import S3Config, SinkConfig, SourceConfig
from ldm_batch.config.storage import OPTIONS, StorageAccess, check_storage
from ldm_batch.config.validate import find_forbidden
from ldm_batch.errors import AccessError, JobError
from ldm_batch.plan.command_line import section_settings
from ldm_batch.storage import Store, kinds
from ldm_batch.storage.instance import options_of, retry_s_of
from ldm_batch.storage.retry import Taken

TAKES_S3 = "known: anon, endpoint_url, profile, requester_pays, retry_s"


def problems(uri: str, s3: S3Config | None = None, **options: Any) -> list[str]:
    return list(check_storage("sink.storage.", options, s3 or S3Config(), [uri]))


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        (
            "s3://b/x",
            {"endpoint_url": "https://h:9000", "profile": "p", "anon": True, "retry_s": 9},
        ),
        ("S3A://b/x", {"requester_pays": True}),
        ("gs://b/x", {"project": "p", "token": "google_default", "retry_s": 0.5}),
        ("az://b/x", {"account_name": "a", "anon": False}),
        ("abfs://c@a.dfs.core.windows.net/x", {"tenant_id": "t"}),
        ("hf://datasets/a/b", {"endpoint": "https://h"}),
    ],
)
def test_what_a_store_takes(uri: str, options: dict[str, Any]) -> None:
    assert problems(uri, **options) == []


@pytest.mark.parametrize(
    ("uri", "options", "told"),
    [
        (
            "s3://b/x",
            {"endpont_url": "https://h"},
            "no option of s3://; did you mean 'endpoint_url'?",
        ),
        ("s3://b/x", {"project": "p"}, f"project: no option of s3://; {TAKES_S3}"),
        ("out/x", {"anon": True}, "anon: no option of a local path, which takes none"),
        ("ftp://h/x", {"host": "h"}, "host: no option of ftp://, which takes none"),
        ("s3://b/x", {"key": "canary"}, "key: refused, a secret"),
        ("az://b/x", {"account_key": "canary"}, "account_key: refused, a secret"),
        (
            "gs://b/x",
            {"token": "canary"},
            "token: refused, a secret; it may be anon, cloud, google",
        ),
        ("gs://b/x", {"endpoint_url": "h:9"}, "'h:9' is not a URL like https://host:port"),
        ("s3://b/x", {"anon": "yes"}, "anon: 'yes' must be true or false"),
        ("s3://b/x", {"retry_s": -1}, "retry_s: -1"),
        ("gs://b/x", {"project": ""}, "project: '' must be a text"),
    ],
)
def test_what_it_does_not_take(uri: str, options: dict[str, Any], told: str) -> None:
    [problem] = problems(uri, **options)
    assert told in problem
    assert "canary" not in problem


def test_two_names_of_one_thing_are_refused() -> None:
    old = S3Config(endpoint="https://a")
    [problem] = problems("s3://b/x", old, endpoint_url="https://b")
    assert problem == "sink.storage.endpoint_url: s3.endpoint says the same; keep one of them"


@pytest.mark.parametrize("name", ["secret", "sas_token", "client_secret", "credential", "password"])
def test_secrets_are_refused_wherever_they_stand(name: str) -> None:
    sink = SinkConfig(uri="az://b/x", storage={name: "canary"})
    [(path, why)] = find_forbidden(sink, "sink")
    assert path == f"sink.storage.{name}"
    assert "environment" in why
    assert list(find_forbidden(SinkConfig(storage={"token": "anon"}), "sink")) == []


def test_each_library_gets_its_own() -> None:
    both = SourceConfig(storage={"anon": True, "project": "p", "retry_s": 7}).access
    assert options_of("s3a", both) == {"anon": True}
    assert options_of("gcs", both) == {"project": "p"}
    assert (retry_s_of(both), retry_s_of(None), retry_s_of(S3Config(retry_s=2))) == (7, 60, 2)
    assert {name for options in OPTIONS.values() for name in options}.isdisjoint(
        {"key", "secret", "account_key", "sas_token", "connection_string", "credential"}
    )


def test_settings_are_written_as_the_command_line_reads_them() -> None:
    sink = SinkConfig(s3=S3Config(region="r"), storage={"project": "p"})
    assert section_settings("sink", sink) == ["sink.s3.region=r", "++sink.storage={project:p}"]


def test_s3_is_reached_by_either_name(s3: S3Config) -> None:
    new = StorageAccess(options={"endpoint_url": s3.endpoint, "retry_s": 5})
    assert Store(f"s3a://{BUCKET}/x", new).publish("a", b"x", exclusive=True)
    assert Store(f"S3://{BUCKET}/x", s3).read("a") == b"x"


def test_a_dataset_is_opened_with_options(s3: S3Config) -> None:
    with pytest.raises(JobError, match=r"storage\.project: no option of s3://"):
        ldm_batch.open_dataset(f"s3://{BUCKET}/x", storage={"project": "p"})
    options = {"endpoint_url": s3.endpoint, "retry_s": 5}
    with pytest.raises(JobError, match="no dataset here"):
        ldm_batch.open_dataset(f"s3://{BUCKET}/x", storage=options)


def status(*words: str) -> Sequence[str]:
    """Exit code and message of `status`."""
    command = [sys.executable, "-m", "ldm_batch", "status", *words]
    ended = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    return str(ended.returncode), ended.stderr


def test_a_command_takes_options(s3: S3Config) -> None:
    sink = f"s3://{BUCKET}/x"
    given = ("--storage", f"endpoint_url={s3.endpoint}", "--storage", "retry_s=5")
    code, told = status(sink, *given)
    assert (code, "no dataset here" in told) == ("2", True), told
    code, told = status(sink, "--storage", "sas_token=canary1")
    assert (code, "canary1" in told, "refused" in told) == ("2", False, True), told


@pytest.mark.parametrize("is_member", [True, False])
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (409, "BlobAlreadyExists", Taken),
        (403, "AuthorizationFailure", AccessError),
        (409, "ContainerBeingDeleted", type(None)),
        (404, "ContainerNotFound", AccessError),
    ],
)
def test_azures_codes_are_known_as_texts_and_as_members(
    status: int, code: str, kind: type[Exception], is_member: bool
) -> None:
    blob = pytest.importorskip("azure.storage.blob")
    azure = pytest.importorskip("ldm_batch.storage.azure")
    error = azure.HttpResponseError("no")
    error.status_code = status
    error.error_code = blob.StorageErrorCode(code) if is_member else code
    told = azure.judge(error, "az://b/x")
    assert isinstance(told, kind)
    assert "StorageErrorCode" not in str(told)


def test_a_way_to_credentials_that_leads_nowhere_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gcs = pytest.importorskip("ldm_batch.storage.gcs")

    def refuse(**_: Any) -> None:
        raise ValueError

    monkeypatch.setattr(gcs.gcsfs.core, "GCSFileSystem", refuse)
    with pytest.raises(AccessError, match=r"gs: no credentials are accepted; run `gcloud auth"):
        Store("gs://b/x", StorageAccess(options={"token": "cloud", "project": "none"}))


@pytest.mark.parametrize(
    ("uri", "missing", "install"),
    [
        ("s3://b/x", "s3fs", "pip install s3fs"),
        ("gs://b/x", "gcsfs", "pip install 'ldm-batch[gcs]'"),
        ("abfs://b/x", "adlfs", "pip install 'ldm-batch[azure]'"),
        ("https://h/x", "aiohttp", "pip install aiohttp"),
    ],
)
def test_a_library_that_is_not_installed_is_named(
    uri: str, missing: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr(kinds, "import_module", find)
    with pytest.raises(JobError) as told:
        kinds.kind_of(uri)
    assert f"needs {missing}, which is not installed here; {install}" in str(told.value)


def test_a_file_of_credentials_that_is_not_there_makes_nobody_anonymous(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    access = StorageAccess(options={"project": "nobody", "retry_s": 0})
    with pytest.raises(AccessError, match=r"/nowhere/key\.json"):
        Store("gs://bucket/a", access)


def test_a_name_that_no_bucket_can_have_is_told(s3: S3Config) -> None:
    with pytest.raises(AccessError, match=r'Invalid bucket name "b_\?"'):
        Store("s3://b_?/a", s3).names("data")
