"""The main job shown on a real checkpoint, and the four pitfalls it guards against.

Needs the `demo` extra: Flax makes the model and Orbax saves it. JAX is imported by the functions
that need it, so that importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import math
import operator
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Generator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import templax as tx

from ._display.terminal import Part, echo, highlight_line

if TYPE_CHECKING:
    import jax

WIDTH = 100


def orbax_load(seed: float, x: Any, features: float) -> jax.Array:
    """Apply a seeded `nn.Dense` whose params were loaded through a template.

    A checkpoint of `nn.Dense(features).init(jax.random.PRNGKey(seed), x)` is restored without a
    file: a `Recipe` stands for it, with the matching, errors and placement of any checkpoint.

    Args:
        seed: Finite; cast to int.
        x: Array-like of shape `(N, D)`, `D` at least 1.
        features: At least 1; cast to int.

    Returns:
        The layer's output, flattened: shape `(N * features,)`.

    Raises:
        ValueError: An argument is not as above.
        ModuleNotFoundError: Flax is not installed.

    Example:
        >>> orbax_load(0.0, [[1.0, 2.0], [3.0, 4.0]], 3.0).shape
        (6,)
    """
    seed, features = _as_int("seed", seed), _as_int("features", features)
    if features < 1:
        raise ValueError(f"Expected features of at least 1, got {features}")
    _need("flax")
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected x as an array of numbers, shape (N, D): {error}") from error
    if array.dtype.kind in "OSUMm":
        raise ValueError(f"Expected x as an array of numbers, shape (N, D), got {array.dtype}")
    x = jnp.asarray(array)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"Expected x of shape (N, D) with D of at least 1, got {x.shape}")
    try:
        key = jax.random.PRNGKey(seed)
    except OverflowError as error:
        raise ValueError(f"Expected a seed of at most 64 bits, got {seed}") from error
    model = nn.Dense(features)
    template = tx.template_of(model.init, key, x)
    params = tx.restore(tx.Recipe(model.init, key, x), template["params"], at="params")
    output: Any = model.apply({"params": params}, x)
    return output.reshape(-1)


def _as_int(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        # A str would be accepted by float().
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"Expected {name} as a finite number, got {value!r}")
    return int(number)


def _need(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'templax.demo needs {error.name}; hint: pip install "templax[demo]"',
                name=error.name,
            ) from error


def main() -> int:
    """Run the demo and print it: coloured on a terminal, plain in a pipe.

    Returns:
        0 if every check held, else 1.

    Raises:
        ModuleNotFoundError: Flax or Orbax is not installed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="templax-demo-") as directory,
        _quiet(),
        # A process of its own, since the number of devices is fixed when JAX starts; and first, to
        # run beside this one.
        _saving_on_eight_devices(os.path.join(directory, "sharded")) as sharded,
    ):
        _need("flax", "orbax.checkpoint")
        return _Demo(os.path.join(directory, "checkpoint")).run(sharded)


class _Demo:
    """The demo's model and checkpoint, and what has failed so far."""

    def __init__(self, path: str):
        import jax

        self.path, self.failures = path, 0
        self.model, self.key, self.x = _model()
        self.variables: Any = self.model.init(self.key, self.x)
        self.template: Any = tx.template_of(self.model.init, self.key, self.x)
        self.leaves: list[jax.Array] = jax.tree.leaves(self.variables)

    def run(self, sharded: Callable[[], str]) -> int:
        import orbax.checkpoint as ocp

        packages = ", ".join(f"{p} {version(p)}" for p in ("jax", "flax", "orbax-checkpoint"))
        echo(f"templax {tx.__version__}, Python {platform.python_version()}, {packages}")
        ocp.PyTreeCheckpointer().save(self.path, self.variables)
        self.main_job()
        self.wrong_shape()
        self.other_dtype()
        self.forgotten_unwrap()
        self.onto_one_device(sharded())
        echo()
        if self.failures:
            echo((f"{self.failures} checks failed", "bold red"))
        else:
            echo(("all checks held", "bold green"))
        return 1 if self.failures else 0

    def main_job(self) -> None:
        import jax.numpy as jnp

        _heading("1. Orbax saved it, templax restores it")
        nbytes = sum(leaf.nbytes for leaf in self.leaves)
        _line(
            "Orbax     ocp.PyTreeCheckpointer().save(path, variables)  "
            f"# {len(self.leaves)} leaves, {nbytes} bytes"
        )
        _line("templax   template  = tx.template_of(model.init, key, x)")
        _line("          variables = tx.restore(path, template)")
        restored = tx.restore(self.path, self.template)
        self.check("each byte equals what was saved", _same(restored, self.variables))
        again = tx.restore(tx.Recipe(self.model.init, self.key, self.x), self.template)
        self.check(
            "each byte equals tx.restore(tx.Recipe(model.init, key, x), template)",
            _same(restored, again),
        )
        outputs = [self.model.apply(v, self.x) for v in (restored, self.variables)]
        self.check("model.apply gives the same output", bool(jnp.array_equal(*outputs)))

    def wrong_shape(self) -> None:
        import jax

        _heading("2. Wrong shape: the model has 6 outputs, the checkpoint 4")
        template = tx.template_of(_model(outputs=6)[0].init, self.key, self.x)
        self.refused(template, ["shape", "shape"])
        self.orbax(template, jax.tree.leaves(template))

    def other_dtype(self) -> None:
        import jax
        import jax.numpy as jnp

        _heading("3. Other dtype: the template asks for int8, the checkpoint holds float32")
        template = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.int8), self.template)
        self.refused(template, ["dtype"] * len(self.leaves))
        self.orbax(template, jax.tree.leaves(template))
        _line("A float may become another float, with one warning:")
        half = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16), self.template)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = tx.restore(self.path, half)
        said = [w for w in caught if issubclass(w.category, tx.CastWarning)]
        for warning in said:
            _report(f"CastWarning: {warning.message}")
        expected = jax.tree.map(lambda a: a.astype(jnp.bfloat16), self.variables)
        self.check(
            "one warning; each byte equals saved.astype(bfloat16)",
            len(said) == 1 and _same(restored, expected),
        )

    def forgotten_unwrap(self) -> None:
        import jax

        _heading(
            '4. Forgotten unwrap: the template is variables["params"], the file has {"params": ...}'
        )
        template = self.template["params"]
        error = self.refused(template, None)
        self.check('the report names the way out: at="params"', 'at="params"' in str(error))
        restored = tx.restore(self.path, template, at="params")
        self.check(
            'tx.restore(path, template, at="params") restores each byte',
            _same(restored, self.variables["params"]),
        )
        self.orbax(template, jax.tree.leaves(template))

    def onto_one_device(self, path: str) -> None:
        import jax

        count = len(jax.local_devices())
        here = "one device" if count == 1 else f"the first of {count} devices"
        _heading(f"5. Other topology: saved from 8 devices, restored on {here}")
        if not os.path.isdir(path):
            _line(f"skipped: {path}")
            return
        catalog = tx.open(path)
        saved = {entry.saved_sharding for entry in catalog.entries if entry.saved_sharding}
        _line(
            f"the file records {len(saved)} kinds of sharding, such as {min(saved, default='none')}"
        )
        restored = tx.restore(path, self.template)
        self.check("tx.restore(path, template) restores each byte", _same(restored, self.variables))
        first = {jax.devices()[0]}
        on_first = all(leaf.devices() == first for leaf in jax.tree.leaves(restored))
        self.check(f"all of it is on {jax.devices()[0]}", on_first)
        self.orbax(self.template, jax.tree.leaves(self.template), path)

    def check(self, what: str, held: bool) -> None:
        self.failures += not held
        _line(("ok", "green") if held else ("FAILED", "bold red"), f"  {what}")

    def refused(self, template: Any, problems: list[str] | None) -> tx.TemplateError | None:
        """Check that templax refuses `template`, for these problems, and show its report."""
        _line("templax   tx.restore(path, template)")
        try:
            tx.restore(self.path, template)
        except tx.TemplateError as error:
            _report(f"TemplateError: {error}")
            if problems is not None:
                found = [mismatch.problem for mismatch in error.mismatches]
                self.check("every mismatch is in the one error", found == problems)
            return error
        self.check("refused", False)
        return None

    def orbax(self, template: Any, wanted: list[Any], path: str | None = None) -> None:
        """What two calls of the installed Orbax do with the same template, run now."""
        import jax
        import orbax.checkpoint as ocp

        for call, checkpointer in (
            ("PyTreeCheckpointer().restore(path, item=template)", ocp.PyTreeCheckpointer),
            ("StandardCheckpointer().restore(path, template)", ocp.StandardCheckpointer),
        ):
            _line(f"Orbax     ocp.{call}")
            try:
                restored: Any = checkpointer().restore(path or self.path, template)
            except Exception as error:  # noqa: BLE001  (whatever Orbax raises is what is shown)
                text = " ".join(str(error).split())
                _report(textwrap.shorten(f"{type(error).__name__}: {text}", 3 * WIDTH), "magenta")
                continue
            finally:
                gc.collect()  # a failed restore complains when collected: now, while it is silenced
            leaves = jax.tree.leaves(restored)
            _report(_without_a_word(leaves, wanted, self.leaves), "magenta")


def _without_a_word(leaves: list[Any], wanted: list[Any], saved: list[Any]) -> str:
    """In a line, how what Orbax returned differs from what was asked for."""
    for leaf, want, original in zip(leaves, wanted, saved, strict=True):
        if leaf.shape != want.shape:
            return (
                f"returns shape {leaf.shape} where the template says {want.shape}, without a word"
            )
        if leaf.dtype != want.dtype:
            return f"returns {leaf.dtype} where the template says {want.dtype}, without a word"
        if leaf.dtype != original.dtype:
            before, after = (a.reshape(-1)[:3].tolist() for a in (original, leaf))
            if any(before):
                before = [round(number, 3) for number in before]
                return f"casts to {leaf.dtype} without a word: {before} becomes {after}"
    return "returns what was saved"


def _model(outputs: int = 4) -> tuple[Any, Any, Any]:
    """A small model, the key it is seeded with, and an input."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(outputs)])
    return model, jax.random.PRNGKey(0), jnp.linspace(-1.0, 1.0, 24).reshape(3, 8)


def _same(a: Any, b: Any) -> bool:
    """Equal trees, dtypes, shapes and bytes."""
    import jax
    import numpy as np

    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        p.dtype == q.dtype
        and p.shape == q.shape
        and np.asarray(p).tobytes() == np.asarray(q).tobytes()
        for p, q in pairs
    )


@contextlib.contextmanager
def _saving_on_eight_devices(path: str) -> Generator[Callable[[], str]]:
    """Save the model from a process with eight CPU devices, while this one continues.

    Yields:
        A function that waits for it and returns `path`, or in words why there is no checkpoint.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    child = subprocess.Popen(
        [sys.executable, "-c", f"from templax import demo; demo.save_sharded({path!r})"],
        env={**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait() -> str:
        _, said = child.communicate()
        if child.returncode == 0:
            return path
        return (said.strip().splitlines() or [f"exit status {child.returncode}"])[-1]

    try:
        yield wait
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()


def save_sharded(path: str) -> None:
    """Save the demo's variables, kernels cut along their rows over eight devices."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    model, key, x = _model()
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def place(leaf: jax.Array) -> jax.Array:
        spec = PartitionSpec("data") if leaf.ndim == 2 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    variables: Any = jax.tree.map(place, model.init(key, x))
    ocp.PyTreeCheckpointer().save(path, variables)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence what Orbax logs, warns of, and leaves to the garbage collector."""
    hook, disabled = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = lambda _: None
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
        logging.disable(disabled)


def _heading(text: str) -> None:
    echo()
    echo((text, "bold"))


def _line(*parts: Part) -> None:
    echo("   ", *parts)


def _report(text: str, style: str | None = None) -> None:
    """What a library says, indented below the call that it answers."""
    for line in text.splitlines():
        for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False):
            echo("      ", *([(part, style)] if style else highlight_line(part)))
