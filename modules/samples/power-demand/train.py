#!/usr/bin/env python3
"""Trains the two versions of the power-demand sample model and writes their bundles beside this file.

    python3 -m venv /tmp/train && /tmp/train/bin/pip install -r requirements.txt
    /tmp/train/bin/python train.py

Data: ItalyPowerDemand as the package aeon ships it, fetched with pip and checked by hash. One row is one day: 24 hourly
readings of electric load in Italy, and the half-year it was taken in.

Model: a bank of random convolution kernels that is never trained (the idea of ROCKET, Dempster et al. 2020), two
pooled features a kernel, and a logistic head. Both versions hold the same bank, drawn from the same seed and stored
before the head, so their files differ in the head alone. Version 1's head has seen the first FIRST_DAYS training rows,
version 2's has seen all. The test rows are only scored.

The same inputs give the same files: the draws are seeded, and what is fitted is rounded before it is stored.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegressionCV

AEON = "aeon==1.6.0"
AEON_SHA256 = "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"
HOURS = 24
LABELS = ["October to March", "April to September"]  # classes 1 and 2 of the data set, in this order
FIRST_DAYS = 12
SEED = 20190502
# (taps, dilation): windows of 7 to 23 hours, so that each kernel sees a peak and its surroundings.
KERNEL_SHAPES = [(7, 1), (7, 2), (7, 3), (9, 1), (9, 2), (11, 1), (11, 2)]
KERNELS_PER_SHAPE = 400
HERE = pathlib.Path(__file__).resolve().parent


def main():
    train_rows, test_rows = download()
    bank = draw_bank(numpy.random.default_rng(SEED))
    (HERE / "test.csv").write_text(
        "label," + ",".join(f"h{hour:02}" for hour in range(HOURS)) + "\n"
        + "".join(f"{label},{','.join(text)}\n" for text, label in test_rows)
    )
    for version, rows, trained_on in [
        (1, train_rows[:FIRST_DAYS], f"the first {FIRST_DAYS} days of the training split"),
        (2, train_rows, f"all {len(train_rows)} days of the training split"),
    ]:
        head = fit_head(bank, *as_arrays(rows))
        model = graph([*bank_nodes(bank), *head_nodes()], [*bank, *head], OUTPUTS)
        write_bundle(HERE / str(version), model, trained_on, as_arrays(train_rows)[0])
        seen, held_out = (accuracy(model, *as_arrays(split)) for split in (rows, test_rows))
        size = len(model.SerializeToString())
        print(f"version {version}: {size} bytes, trained on {len(rows)} days, "
              f"accuracy {seen:.4f} on them, {held_out:.4f} on the {len(test_rows)} test days")


def download():
    """The train and the test split, each a list of (24 readings as they are written, class index)."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder, AEON],
            check=True,
        )
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != AEON_SHA256:
            sys.exit(f"{wheel.name}: sha256 is {found}, not {AEON_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            return tuple(
                parse(archive.read(f"aeon/datasets/data/ItalyPowerDemand/ItalyPowerDemand_{split}.ts").decode())
                for split in ("TRAIN", "TEST")
            )


def parse(text):
    rows = []
    for line in text.partition("@data\n")[2].split():
        readings, label = line.split(":")
        rows.append((readings.split(","), int(label) - 1))
    return rows


def as_arrays(rows):
    return (
        numpy.array([text for text, _ in rows], numpy.float32),
        numpy.array([label for _, label in rows], numpy.int64),
    )


def draw_bank(random):
    """Per kernel shape, weights [kernels, 1, taps] that sum to zero, then biases [kernels]."""
    tensors = []
    for taps, dilation in KERNEL_SHAPES:
        weights = random.standard_normal((KERNELS_PER_SHAPE, 1, taps))
        weights -= weights.mean(axis=2, keepdims=True)
        tensors.append((f"kernels_{taps}x{dilation}", weights.astype(numpy.float32)))
    for taps, dilation in KERNEL_SHAPES:
        biases = random.uniform(-1, 1, KERNELS_PER_SHAPE)
        tensors.append((f"biases_{taps}x{dilation}", biases.astype(numpy.float32)))
    tensors += [
        ("channel_axis", numpy.array([1], numpy.int64)),
        ("smallest_deviation", numpy.array(1e-6, numpy.float32)),
    ]
    return [numpy_helper.from_array(values, name) for name, values in tensors]


def bank_nodes(bank):
    """`load` [N, 24] to `features` [N, 2 per kernel]: each day is brought to mean 0 and deviation 1, convolved, pooled."""
    nodes = [
        helper.make_node("ReduceMean", ["load"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["load", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["variance"], axes=[1], keepdims=1),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Max", ["deviation", "smallest_deviation"], ["divisor"]),
        helper.make_node("Div", ["centred", "divisor"], ["normalised"]),
        helper.make_node("Unsqueeze", ["normalised", "channel_axis"], ["day"]),
    ]
    pooled = []
    for taps, dilation in KERNEL_SHAPES:
        name = f"{taps}x{dilation}"
        nodes += [
            helper.make_node("Conv", ["day", f"kernels_{name}", f"biases_{name}"], [f"response_{name}"],
                             kernel_shape=[taps], dilations=[dilation]),
            helper.make_node("ReduceMax", [f"response_{name}"], [f"maximum_{name}"], axes=[2], keepdims=0),
            # The share of positive responses, with a ramp for a step: a rounding error can't flip a reading, so
            # every engine gives the same probabilities.
            helper.make_node("HardSigmoid", [f"response_{name}"], [f"positive_{name}"], alpha=2.0, beta=0.5),
            helper.make_node("ReduceMean", [f"positive_{name}"], [f"share_{name}"], axes=[2], keepdims=0),
        ]
        pooled += [f"maximum_{name}", f"share_{name}"]
    return [*nodes, helper.make_node("Concat", pooled, ["features"], axis=1)]


def fit_head(bank, days, labels):
    features = run(graph(bank_nodes(bank), bank, [("features", TensorProto.FLOAT, ["N", None])]), days)[0]
    mean, deviation = features.mean(axis=0), numpy.maximum(features.std(axis=0), 1e-3)
    fit = LogisticRegressionCV(Cs=numpy.logspace(-6, 0, 7), cv=3, scoring="neg_log_loss", max_iter=1000)
    fit.fit(((features - mean) / deviation).astype(numpy.float64), labels)
    # The features' standardisation is folded into the head.
    weights = numpy.round(fit.coef_[0] / deviation, 6)
    bias = numpy.round(fit.intercept_ - weights @ mean, 6)
    return [
        numpy_helper.from_array(numpy.array([[-0.5, 0.5]], numpy.float32), "both_sides"),
        numpy_helper.from_array(bias.astype(numpy.float32), "head_bias"),
        numpy_helper.from_array(weights.astype(numpy.float32).reshape(-1, 1), "head_weights"),
    ]


def head_nodes():
    return [
        helper.make_node("Gemm", ["features", "head_weights", "head_bias"], ["log_odds"]),
        helper.make_node("MatMul", ["log_odds", "both_sides"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]


OUTPUTS = [("probabilities", TensorProto.FLOAT, ["N", 2]), ("label", TensorProto.INT64, ["N"])]


def graph(nodes, initializers, outputs):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "power-demand",
            [helper.make_tensor_value_info("load", TensorProto.FLOAT, ["N", HOURS])],
            [helper.make_tensor_value_info(*output) for output in outputs],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
        producer_name="edgewise power-demand sample",
    )


def run(model, days):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"load": days})


def accuracy(model, days, labels):
    return float((run(model, days)[1] == labels).mean())


def write_bundle(folder, model, trained_on, train_days):
    onnx.checker.check_model(model, full_check=True)
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "labels.txt").write_text("".join(label + "\n" for label in LABELS))
    samples = ",\n".join(json.dumps(sample) for sample in golden_samples(model, train_days))
    (folder / "golden.json").write_text(f'{{"samples": [\n{samples}\n]}}\n')
    (folder / "model.toml").write_text(f"""\
[model]
description = "Half-year of a day's 24 hourly electric-load readings; trained on {trained_on}"
framework = "scikit-learn"
framework_version = "1.7.2"
license = "Apache-2.0"

[onnx]
file = "model.onnx"

[labels]
file = "labels.txt"

[golden]
file = "golden.json"
rtol = 0.001
atol = 0.0001

[resources]
cpu = 0.1
memory_mb = 64
accelerator = "any"
""")


def golden_samples(model, train_days):
    """Training days, so that the test split stays unseen: four alone, then a batch of three and one of eight."""
    days = numpy.round(train_days, 6)
    samples = []
    for first, last in [(0, 1), (1, 2), (2, 3), (3, 4), (10, 13), (40, 48)]:
        probabilities, label = run(model, days[first:last])
        samples.append({
            "inputs": [tensor("load", "FP32", days[first:last])],
            "outputs": [tensor("probabilities", "FP32", probabilities), tensor("label", "INT64", label)],
        })
    return samples


def tensor(name, datatype, values):
    data = [value if datatype == "INT64" else round(value, 6) for value in values.ravel().tolist()]
    return {"name": name, "shape": list(values.shape), "datatype": datatype, "data": data}


if __name__ == "__main__":
    main()
