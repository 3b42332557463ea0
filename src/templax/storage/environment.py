"""Settings of object stores from the environment: variables and files that all tools share."""

from __future__ import annotations

import configparser
import os
from contextlib import suppress


def find_variable(*names: str) -> str | None:
    """The first of these environment variables that is set, and not empty; None if none is."""
    return next((value for name in names if (value := os.environ.get(name))), None)


def read_aws_profile() -> dict[str, str]:
    """The credentials and region of a profile in the files that all tools for AWS share.

    obstore reads the environment variables and the roles of machines, but not these files.
    Credentials in the environment take precedence, unless `AWS_PROFILE` is set.
    """
    profile = find_variable("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
    if find_variable("AWS_ACCESS_KEY_ID") and profile is None:
        return {}
    found: dict[str, str] = {}
    name = profile or "default"
    places = (
        (find_variable("AWS_CONFIG_FILE") or "~/.aws/config", f"profile {name}"),
        (find_variable("AWS_CONFIG_FILE") or "~/.aws/config", name),
        (find_variable("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", name),
    )
    for path, section in places:
        file = configparser.RawConfigParser()
        with suppress(OSError, configparser.Error, UnicodeDecodeError):
            file.read(os.path.expanduser(path), encoding="utf-8")
            if file.has_section(section):
                found |= dict(file.items(section))
    named = {
        "access_key_id": "aws_access_key_id",
        "secret_access_key": "aws_secret_access_key",
        "session_token": "aws_session_token",
    }
    settings = {name: found[key] for name, key in named.items() if key in found}
    if "region" in found and not find_variable("AWS_REGION", "AWS_DEFAULT_REGION"):
        settings["region"] = found["region"]
    return settings
