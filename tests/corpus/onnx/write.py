"""Writes the file of this directory with onnx, as PyTorch does: the fields before the graph are set.

Run by hand with onnx 1.23.2, in this directory: `python write.py`.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

weights = [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "dense.weight")]
ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
graph = helper.make_graph(
    [helper.make_node("Add", ["x", "dense.weight"], ["y"])], "main", ports[:1], ports[1:], weights
)
onnx.save(helper.make_model(graph, producer_name="pytorch", producer_version="2"), "model.onnx")
