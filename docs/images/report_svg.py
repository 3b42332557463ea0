"""Draws report.svg: the report on a real Orbax checkpoint that does not fit its template.

    python docs/images/report_svg.py

Needs the `demo` extra.
"""

import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from rich.console import Console
from rich.text import Text

import templax as tx
from templax._display.terminal import highlight_line
from templax.cli import shell_hints

CHECKPOINT = "ckpt/1000"


def decoder(width: int, *, head: str, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Params of a small decoder, abstract."""

    def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    layers = {
        f"layer_{i}": {"attn": {"kernel": leaf(64, 64)}, "mlp": {"kernel": leaf(64, width)}}
        for i in range(3)
    }
    return {
        "embed": {"table": leaf(512, 64, dtype=dtype)},
        "decoder": layers,
        head: {"bias": leaf(512)},
    }


def main() -> None:
    svg = Path(__file__).resolve().parent / "report.svg"
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        saved = decoder(256, head="lm_head")
        saved["opt_state"] = {"count": jax.ShapeDtypeStruct((), jnp.int32)}
        tree = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), saved)
        ocp.PyTreeCheckpointer().save(Path(CHECKPOINT).resolve(), tree)
        report = shell_hints.format_report(
            tx.check(CHECKPOINT, decoder(128, head="LMHead", dtype=jnp.int8))
        )
        os.chdir(svg.parent)
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(f"$ templax check {CHECKPOINT} model.json", highlight=False)
    for line in report.splitlines():
        console.print(Text.assemble(*highlight_line(line)), highlight=False)
    text = console.export_svg(title="templax", unique_id="report")
    # A reader's browser need not fetch rich's fonts from elsewhere.
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)
    # No line is clipped: rich defines no clip path for the last one, which hides it in some
    # renderers, and cuts the letters that reach below it in others.
    text = re.sub(r"<clipPath .*?</clipPath>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' clip-path="[^"]*"', "", text)
    svg.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    print(report)


if __name__ == "__main__":
    main()
