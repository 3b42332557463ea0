"""What the environment has for object stores: variables, files that tools share, and packages."""

from __future__ import annotations

import configparser
import os
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..errors import MissingPackage


def import_extra(module: str, what: str, extra: str) -> Any:
    """Imports a module of a package that comes with an extra of templax.

    Args:
        module: Its name.
        what: What needs it; the error begins with this.
        extra: The name of the extra.

    Raises:
        MissingPackage: The package is not installed, or can't be imported.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name == package
        why = "is not installed" if missing else f"can't be imported ({error})"
        raise MissingPackage(
            f"{what} needs {package}, which {why}",
            name=package,
            hint=f'pip install "templax[{extra}]"',
        ) from error


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
