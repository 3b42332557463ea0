"""Where the settings of object stores come from: the URL, the environment and shared files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from templax.storage import S3, Azure

pytest.importorskip("obstore")

CREDENTIALS = """\
[default]
aws_access_key_id = of-default
aws_secret_access_key = hidden-default

[work]
aws_access_key_id = of-work
aws_secret_access_key = hidden-work
aws_session_token = token-work
"""

CONFIG = """\
[default]
region = eu-west-1

[profile work]
region = eu-north-1
"""


@pytest.fixture(autouse=True)
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The files that tools for AWS share, in a home of their own; no variables are set."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(CREDENTIALS)
    (tmp_path / ".aws/config").write_text(CONFIG)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for variable in list(os.environ):
        if variable.startswith(("AWS_", "AZURE_")):
            monkeypatch.delenv(variable)
    return monkeypatch


def configure_s3(**settings: Any) -> dict[str, Any]:
    """The settings that obstore gets for `s3://bucket`; it reads the environment for others."""
    store = S3(**settings)
    return dict(store.make(store.locate("s3://bucket/x")).config)


def find_keys(config: dict[str, Any]) -> tuple[Any, ...]:
    names = ("access_key_id", "secret_access_key", "session_token", "region")
    return tuple(config.get(name) for name in names)


WORK = ("of-work", "hidden-work", "token-work", "eu-north-1")


def test_the_default_profile_of_the_shared_files_is_used() -> None:
    assert find_keys(configure_s3()) == ("of-default", "hidden-default", None, "eu-west-1")


@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_a_profile_is_chosen_by_its_name(aws: pytest.MonkeyPatch, variable: str) -> None:
    aws.setenv(variable, "work")
    assert find_keys(configure_s3()) == WORK
    aws.setenv("AWS_REGION", "us-west-2")
    assert find_keys(configure_s3()) == (*WORK[:3], None)


def test_shared_files_may_lie_elsewhere(aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("credentials", "config"):
        (tmp_path / ".aws" / name).rename(tmp_path / name)
    aws.setenv("AWS_PROFILE", "work")
    assert find_keys(configure_s3())[:2] == (None, None)
    aws.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    aws.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert find_keys(configure_s3()) == WORK


def test_keys_in_the_environment_precede_files_and_a_named_profile_precedes_them(
    aws: pytest.MonkeyPatch,
) -> None:
    aws.setenv("AWS_ACCESS_KEY_ID", "of-environment")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "hidden-environment")
    assert find_keys(configure_s3()) == (None, None, None, None)
    aws.setenv("AWS_PROFILE", "work")
    assert find_keys(configure_s3()) == WORK


def test_arguments_precede_all_profiles(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_PROFILE", "work")
    given = {"access_key_id": "given", "secret_access_key": "hidden-given"}
    assert find_keys(configure_s3(**given))[:3] == ("given", "hidden-given", None)
    assert find_keys(configure_s3(anonymous=True))[:2] == (None, None)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"[work\nno file of this kind", b""])
def test_shared_files_that_are_none_are_done_without(
    aws: pytest.MonkeyPatch, tmp_path: Path, text: bytes
) -> None:
    (tmp_path / ".aws/credentials").write_bytes(text)
    aws.setenv("AWS_PROFILE", "work")
    assert find_keys(configure_s3()) == (None, None, None, "eu-north-1")


def test_parts_have_checksums_unless_the_environment_chooses(aws: pytest.MonkeyPatch) -> None:
    assert configure_s3()["checksum_algorithm"] == "SHA256"
    aws.setenv("AWS_CHECKSUM_ALGORITHM", "")
    assert configure_s3()["checksum_algorithm"] == "SHA256"
    aws.setenv("AWS_CHECKSUM_ALGORITHM", "CRC64NVME")
    assert configure_s3().get("checksum_algorithm") != "SHA256"


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("acc.dfs.core.windows.net", None),
        ("acc.blob.core.windows.net", None),
        ("acc.dfs.core.chinacloudapi.cn", "https://acc.blob.core.chinacloudapi.cn"),
        ("acc.dfs.core.usgovcloudapi.net", "https://acc.blob.core.usgovcloudapi.net"),
    ],
)
def test_the_account_and_the_cloud_are_in_the_url(host: str, endpoint: str | None) -> None:
    store = Azure(key="aGlkZGVu")
    location = store.locate(f"abfss://container@{host}/run/1")
    config = store.make(location).config
    assert location.path == "run/1"
    assert config["container_name"] == "container"
    assert config["account_name"] == "acc"
    assert config.get("endpoint") == endpoint


def test_an_address_that_is_given_precedes_the_cloud_of_the_url() -> None:
    store = Azure(key="aGlkZGVu", endpoint="http://localhost:10000/acc")
    config = store.make(store.locate("abfss://c@acc.dfs.core.chinacloudapi.cn/run")).config
    assert config["endpoint"] == "http://localhost:10000/acc"
