#!/usr/bin/env python3
"""Makes the small models that the engine is tested with: make_models.py FOLDER (run by fetch-models, in its venv).

zipmap.onnx           what skl2onnx makes by default: the probabilities are a sequence of maps
trees_binary.onnx     a random forest for two classes: tract 0.23.9 answers label 0 for every row, without an error
boosted_binary.onnx   boosted trees for two classes: tract 0.23.9 refuses their base_values
two_in_two_out.onnx   sum and difference of a [N, 4] and b [N, 4]
scalar.onnx           a scalar factor [] times vector [N]
nan.onnx              x ln x, which is NaN at 0
perceptron.onnx       24 numbers to 16 to the probabilities of 3 classes: a few microseconds
types/identity_*.onnx one for each tensor type, [N] to [N]

The same package versions give the same bytes.
"""

import math
import pathlib
import sys

from onnx import TensorProto, checker, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

OPSETS = {"": 13, "ai.onnx.ml": 1}
TYPES = {
    "f32": TensorProto.FLOAT,
    "f64": TensorProto.DOUBLE,
    "f16": TensorProto.FLOAT16,
    "i8": TensorProto.INT8,
    "i16": TensorProto.INT16,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
    "u8": TensorProto.UINT8,
    "u16": TensorProto.UINT16,
    "u32": TensorProto.UINT32,
    "u64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}


def main():
    folder = pathlib.Path(sys.argv[1])
    (folder / "types").mkdir(parents=True, exist_ok=True)
    for name, model in models().items():
        checker.check_model(model, full_check=True)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def models():
    f32 = TensorProto.FLOAT
    made = {
        f"types/identity_{name}": plain(
            [("Identity", ["x"], ["y"])], {"x": (kind, ["N"])}, {"y": (kind, ["N"])}
        )
        for name, kind in TYPES.items()
    }
    pair = (f32, ["N", 4])
    made["two_in_two_out"] = plain(
        [("Add", ["a", "b"], ["sum"]), ("Sub", ["a", "b"], ["difference"])],
        {"a": pair, "b": pair},
        {"sum": pair, "difference": pair},
    )
    made["scalar"] = plain(
        [("Mul", ["factor", "vector"], ["scaled"])],
        {"factor": (f32, []), "vector": (f32, ["N"])},
        {"scaled": (f32, ["N"])},
    )
    made["nan"] = plain(
        [("Log", ["x"], ["logarithm"]), ("Mul", ["x", "logarithm"], ["y"])], {"x": (f32, ["N"])}, {"y": (f32, ["N"])}
    )
    layers = {"w1": (24, 16), "b1": (16,), "w2": (16, 3), "b2": (3,)}
    made["perceptron"] = plain(
        [
            ("Gemm", ["load", "w1", "b1"], ["sums"]),
            ("Relu", ["sums"], ["hidden"]),
            ("Gemm", ["hidden", "w2", "b2"], ["scores"]),
            ("Softmax", ["scores"], ["probabilities"]),
        ],
        {"load": (f32, ["N", 24])},
        {"probabilities": (f32, ["N", 3])},
        [weights(name, shape) for name, shape in layers.items()],
    )
    flowers, tumours = load_iris(return_X_y=True), load_breast_cancer(return_X_y=True)
    # Solved until only the last digits depend on the machine and its number of threads; those are rounded away.
    regression = LogisticRegression(solver="newton-cholesky", tol=1e-9).fit(*flowers)
    regression.coef_, regression.intercept_ = regression.coef_.round(3), regression.intercept_.round(3)
    made["zipmap"] = converted(regression, flowers, zipmap=True)
    forest = RandomForestClassifier(n_estimators=10, max_depth=4, random_state=1).fit(*tumours)
    made["trees_binary"] = converted(forest, tumours, zipmap=False)
    boosted = GradientBoostingClassifier(n_estimators=10, random_state=1).fit(*tumours)
    made["boosted_binary"] = converted(boosted, tumours, zipmap=False)
    return made


def weights(name, shape):
    numbers = [(at * 7919 % 101) / 101 - 0.5 for at in range(math.prod(shape))]
    return helper.make_tensor(name, TensorProto.FLOAT, shape, numbers)


def plain(nodes, inputs, outputs, constants=()):
    def declared(tensors):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in tensors.items()]

    return helper.make_model(
        helper.make_graph(
            [helper.make_node(*node) for node in nodes], "test", declared(inputs), declared(outputs), list(constants)
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
        producer_name="edgewise tests",
    )


def converted(estimator, data, zipmap):
    rows, _ = data
    options = {} if zipmap else {id(estimator): {"zipmap": False}}
    # skl2onnx would name the graph after a random number, and lists the opsets in a set's order.
    model = to_onnx(estimator, rows[:1].astype("float32"), options=options, name="test", target_opset=OPSETS)
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


if __name__ == "__main__":
    main()
