"""The errors for what templax does not build of a pickle, with what to save in its place."""

from __future__ import annotations

from ...errors import Unsupported
from .objects import LAZY, PARAMETER

_INSTEAD = {
    "torch._utils._rebuild_qtensor": "tensor.dequantize()",
    "torch._utils._rebuild_sparse_tensor": "tensor.to_dense()",
    "torch._utils._rebuild_nested_tensor": "list(tensor.unbind())",
    "torch._tensor._rebuild_from_type_v2": "tensor.detach().as_subclass(torch.Tensor)",
    PARAMETER: "parameter.detach().as_subclass(torch.Tensor)",
    "torch.complex32": "tensor.to(torch.complex64)",
    "torch.float4_e2m1fn_x2": "tensor.view(torch.uint8)",
    **dict.fromkeys(
        (f"torch.{name}" for name in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")),
        "tensor.dequantize()",
    ),
    LAZY: "tensor.resolve_conj().resolve_neg()",
    "numpy._core.multiarray._reconstruct": "torch.from_numpy(array)",
    "numpy.core.multiarray._reconstruct": "torch.from_numpy(array)",
    "numpy._core.multiarray.scalar": "number.item()",
    "numpy.core.multiarray.scalar": "number.item()",
    "collections.defaultdict": "dict(value)",
    "argparse.Namespace": "vars(value)",
}
"""Name that is refused → what to save in its place."""


def refuse_text() -> Unsupported:
    """The error for a string that is not Unicode."""
    return Unsupported(
        "templax reads text that is Unicode, got a string with half of a surrogate pair",
        hint='save it as bytes, `text.encode(errors="surrogatepass")`',
    )


def make_refusal(name: str) -> Unsupported:
    """The error for a pickle that needs a class or function that templax does not build."""
    what = f"templax reads no `{name[:200]}` in a pickle, and calls nothing that a file names"
    if name == LAZY:
        what = f"templax reads no {LAZY}"
    if name == PARAMETER:
        what = "templax reads parameters only if their attributes are numbers, text, lists or dicts"
    instead = _INSTEAD.get(name)
    usual = "save a dict of tensors, numbers and text, such as a `state_dict()`"
    return Unsupported(what, hint=usual if instead is None else f"save `{instead}` in its place")
