"""`templax.demo` compared with plain Flax and with Orbax."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx
from helpers import mark_slow, run_python
from templax.demo import orbax_load

X = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]], np.float32)


def plain_flax(seed, x, features):
    model = nn.Dense(features)
    return model.apply(model.init(jax.random.PRNGKey(seed), x), x).reshape(-1)


def same_bytes(a, b):
    return (a.dtype, a.shape, bytes(np.asarray(a))) == (b.dtype, b.shape, bytes(np.asarray(b)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "features"),
    [(0, 1), (3.9, 2.7), (2**40, 1), *mark_slow((42, 4), (7.0, 5.0), (2**31, 3), (-1, 2))],
)
def test_orbax_load_equals_plain_flax_bit_for_bit(seed, features):
    result = orbax_load(seed, X, features)
    assert result.ndim == 1
    assert result.shape == (len(X) * int(features),)
    assert same_bytes(result, plain_flax(int(seed), X, int(features)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "x",
    [
        X.tolist(),
        X.astype(np.float64),
        jnp.asarray(X),
        jnp.asarray(X, jnp.bfloat16),
        [[1, 2], [3, 4]],
        np.ones((2, 3), bool),
        np.ones((3, 1), np.complex64),
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda x: type(x).__name__ + str(getattr(x, "dtype", "")),
)
def test_orbax_load_accepts_anything_array_like(x):
    assert same_bytes(orbax_load(1, x, 2), plain_flax(1, jnp.asarray(x), 2))


def test_orbax_load_accepts_arrays_without_dimensions_as_numbers():
    result = orbax_load(np.float32(3), X, jnp.asarray(2))
    assert same_bytes(result, plain_flax(3, X, 2))


@pytest.mark.slow
def test_orbax_load_equals_a_real_orbax_save_restored_by_templax(tmp_path):
    """A `Recipe` and a file are the same checkpoint."""
    model, key = nn.Dense(4), jax.random.PRNGKey(11)
    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", model.init(key, X))
    template = tx.template_of(model.init, key, X)
    params = tx.restore(tmp_path / "ckpt", template["params"], at="params")
    restored = model.apply({"params": params}, X).reshape(-1)
    assert same_bytes(orbax_load(11.0, X, 4.0), restored)


@pytest.mark.parametrize(
    ("seed", "x", "features", "message"),
    [
        (0, [1.0, 2.0], 3, "Expected x of shape (N, D) with D of at least 1, got (2,)"),
        (0, [[[1.0]]], 3, "Expected x of shape (N, D) with D of at least 1, got (1, 1, 1)"),
        (0, 1.0, 3, "Expected x of shape (N, D) with D of at least 1, got ()"),
        (0, np.zeros((2, 0)), 3, "Expected x of shape (N, D) with D of at least 1, got (2, 0)"),
        (float("nan"), X, 3, "Expected seed as a finite number, got nan"),
        (float("inf"), X, 3, "Expected seed as a finite number, got inf"),
        (-np.inf, X, 3, "Expected seed as a finite number, got -inf"),
        ("3", X, 3, "Expected seed as a finite number, got '3'"),
        (None, X, 3, "Expected seed as a finite number, got None"),
        (1j, X, 3, "Expected seed as a finite number, got 1j"),
        (1e30, X, 3, f"Expected a seed of at most 64 bits, got {int(1e30)}"),
        (0, X, 0, "Expected features of at least 1, got 0"),
        (0, X, -2.0, "Expected features of at least 1, got -2"),
        (0, X, 0.9, "Expected features of at least 1, got 0"),
        (0, X, float("nan"), "Expected features as a finite number, got nan"),
        (0, X, [2, 3], "Expected features as a finite number, got [2, 3]"),
    ],
)
def test_orbax_load_refuses_invalid_arguments(seed, x, features, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        orbax_load(seed, x, features)


@pytest.mark.parametrize(
    "x", [[["a"]], [[1.0], [2.0, 3.0]], [[object()]], [[10**400]], jax.random.key(0)]
)
def test_orbax_load_refuses_arrays_without_numbers(x):
    with pytest.raises(ValueError, match=r"^Expected x as an array of numbers, shape \(N, D\)"):
        orbax_load(0, x, 1)


def run(*arguments, **environment):
    """Runs Python as from a shell, where no variable sets the number of devices."""
    unset = {"XLA_FLAGS": None, "FORCE_COLOR": None}
    return run_python(*arguments, timeout_s=300, **(unset | environment))


@pytest.mark.slow
def test_the_demo_succeeds_and_shows_each_pitfall_in_both_libraries():
    done = run("-m", "templax", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    text = done.stdout
    assert text.endswith("\nall checks held\n")
    assert "skipped" not in text
    assert "FAILED" not in text
    headings = re.findall(r"^\d\. .*", text, re.MULTILINE)
    assert headings == [
        "1. Orbax saved it, templax restores it",
        "2. Wrong shape: the model has 6 outputs, the checkpoint 4",
        "3. Other dtype: the template asks for int8, the checkpoint holds float32",
        '4. Forgotten unwrap: the template is variables["params"], the file has {"params": ...}',
        "5. Other topology: saved from 8 devices, restored on one device",
    ]
    for section in text.split("\n\n")[2:6]:
        assert "templax " in section or "tx.restore" in section
        assert section.count("Orbax     ocp.") == 2
    assert "Expected shape `(16, 6)`, got `(16, 4)` - at `params.layers_2.kernel`\n" in text
    assert "Expected dtype `int8`, got `float32` - at `params.layers_0.bias`\n" in text
    assert 'under `params`; hint: at="params"' in " ".join(text.split())
    assert "such as P('data') over data=8\n" in text


@pytest.mark.slow
def test_the_demo_is_coloured_on_a_terminal():
    done = run("-m", "templax", "demo", FORCE_COLOR="1", TERM="xterm-256color")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b[32m\x1b[1mall checks held\x1b[0m" in done.stdout


@pytest.mark.slow
def test_a_failed_check_makes_the_demo_fail():
    """A restore that returns other bytes is noticed."""
    code = """
import templax as tx
from templax import demo
restore = tx.restore
def wrong(checkpoint, *args, **kwargs):
    import jax
    tree = restore(checkpoint, *args, **kwargs)
    return tree if isinstance(checkpoint, tx.Recipe) else jax.tree.map(lambda a: a + 1, tree)
tx.restore = wrong
raise SystemExit(demo.main())
"""
    done = run("-c", code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED  each byte equals what was saved" in done.stdout
    assert "checks failed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("package", ["orbax", *mark_slow("flax")])
def test_without_its_extra_the_demo_names_what_to_install(package):
    hidden = f"import sys; sys.modules[{package!r}] = None"
    done = run("-c", f"{hidden}; from templax.cli import main; main(['demo'])")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: templax.demo needs ")
    assert package in done.stderr.splitlines()[0]
    assert done.stderr.endswith('; hint: pip install "templax[demo]"\n')
