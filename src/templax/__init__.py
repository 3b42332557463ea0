"""Restore JAX checkpoints through a template.

    restore, check, plan, run    load a checkpoint; compare it first; see what that costs
    Topology                     the hosts of a job that need not exist, for plan
    template_of, save_template   make a template; write it to a file
    open, read_json              list what a checkpoint holds; read a JSON item of it
    save, verify, fingerprint    write a checkpoint; check every byte; compare values
    convert, diff                write a checkpoint in another format; how two checkpoints differ
    draw_sharding, draw_chunks   which device holds which part of a leaf; which file
    account_bytes                what every byte of a checkpoint's files is for
    Manager, Keep                the steps of a training run; which of them stay
    Recipe                       a function in place of a checkpoint
    view                         a checkpoint as a mapping shows it, under other names and shapes
    merge                        several checkpoints as one
    Mapping, From, Concat        where the leaves of a tree come from in another
    suggest                      a mapping with which a checkpoint fits a template
    show_progress, last_restore  how far a restore is; what it took

Errors are in `templax.errors`, and Orbax's names in `templax.compat.orbax`.

    >>> import os, tempfile
    >>> import jax.numpy as jnp
    >>> import templax as tx
    >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
    >>> saved = tx.save(path, {"params": {"w": jnp.ones((2, 3))}, "step": 7})
    >>> catalog = tx.open(path)
    >>> tx.restore(catalog, catalog.template()["params"], at="params")["w"].shape
    (2, 3)

`import templax` imports nothing heavy: each public name is loaded when it is first used, and JAX
only by calls that make arrays of it or ask it whether this process is one of several, as `save`
does. Everything else works where JAX is not installed: a template of numpy arrays is restored into
numpy arrays.
"""

__version__ = "0.1.0"

_MODULES = {
    "_audit.account": ("account_bytes",),
    "_audit.account_result": ("ByteAccount",),
    "_audit.diff": ("diff",),
    "_audit.diff_result": ("Diff", "LeafDiff"),
    "_audit.diff_values": ("ValueDiff",),
    "_audit.result": ("Verified",),
    "_audit.verify": ("verify",),
    "_catalog.catalog": ("Catalog",),
    "_catalog.entry": ("LeafEntry",),
    "_catalog.fingerprint": ("Fingerprint",),
    "_convert.api": ("convert",),
    "_convert.result": ("Converted", "LeafCast"),
    "_display.draw": ("draw_chunks", "draw_sharding"),
    "_display.picture": ("Picture",),
    "_display.progress": ("show_progress",),
    "_match.result": ("Match", "TemplateError"),
    "_plan.job": ("HostPlan", "JobPlan"),
    "_plan.plan": ("Plan",),
    "_plan.topology": ("Topology",),
    "_restore.api": ("check", "last_restore", "open", "plan", "restore", "run"),
    "_restore.stats": ("Stats",),
    "_runs.manager": ("Manager",),
    "_runs.retention": ("Keep",),
    "_save.fingerprint": ("fingerprint",),
    "_save.result": ("Saved",),
    "_save.save": ("save",),
    "_template.save": ("save_template",),
    "_template.trace": ("template_of",),
    "_views.mapping": ("Mapping",),
    "_views.merge": ("merge",),
    "_views.recipe": ("Recipe",),
    "_views.rules": ("Concat", "From"),
    "_views.suggest": ("suggest",),
    "_views.view": ("view",),
    "errors": (
        "AlreadyExists",
        "CastWarning",
        "CheckpointError",
        "Corrupted",
        "MappingError",
        "Mismatch",
        "MissingPackage",
        "NotFound",
        "SaveError",
        "SourceError",
        "TemplaxError",
        "Uncommitted",
        "UnknownFormat",
        "Unsupported",
        "Unverified",
        "UsageError",
    ),
    "formats.json_items": ("read_json",),
}
"""Where each public name is defined. `__init__.pyi` says the same to type checkers."""

_HOME = {name: module for module, names in _MODULES.items() for name in names}
_NEED_JAX = ("Recipe", "template_of")
_PACKAGES = ("errors", "formats", "mappings", "storage")


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__all__":
        return _list_names()
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _NEED_JAX:
        from ._core.optional import require_jax

        require_jax(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_list_names(), *_PACKAGES})


def _list_names() -> list[str]:
    """The public names, without those that raise an error because JAX is not installed: `help` and
    `import *` get every name that there is.
    """
    from ._core.optional import is_jax_installed

    missing = () if is_jax_installed() else _NEED_JAX
    return sorted(name for name in _HOME if name not in missing)
