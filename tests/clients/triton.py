"""tritonclient[http] from PyPI against an agent: triton.py HOST:PORT MODEL TEST.csv"""

import csv
import sys

import numpy
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

address, model, path = sys.argv[1:]
with open(path, newline="") as file:
    rows = list(csv.reader(file))[1:]
truth = numpy.array([int(row[0]) for row in rows])
windows = numpy.array([row[1:] for row in rows], dtype=numpy.float32)

client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
assert not client.is_model_ready("other")
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
about = client.get_model_metadata(model)
assert about["inputs"] == [{"name": "load", "datatype": "FP32", "shape": [-1, 24]}], about
version = about["versions"][0]
config = client.get_model_config(model)
assert config["input"] == [{"name": "load", "data_type": "TYPE_FP32", "dims": [-1, 24]}], config
index = client.get_model_repository_index()
assert index == [{"name": model, "version": version, "state": "READY", "reason": ""}], index


def infer(windows, binary, **more):
    load = triton.InferInput("load", list(windows.shape), "FP32")
    load.set_data_from_numpy(windows, binary_data=binary)
    names = ["label", "probabilities"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(model, [load], outputs=outputs, request_id="r-1", **more)
    assert answer.get_response()["id"] == "r-1"
    return [answer.as_numpy(name) for name in names]


labels, probabilities = infer(windows, binary=True)
assert labels.shape == (len(truth),) and probabilities.shape == (len(truth), 2)
accuracy = (labels == truth).mean()
assert accuracy > 0.95, f"accuracy {accuracy}, the sample's README says 0.9689"
for other in (infer(windows, binary=False), infer(windows, True, model_version=version)):
    assert (other[0] == labels).all() and numpy.allclose(other[1], probabilities, atol=1e-6)


stats = client.get_inference_statistics(model)["model_stats"][0]
assert (stats["inference_count"], stats["execution_count"]) == (3 * len(truth), 3), stats
assert stats["inference_stats"]["compute_infer"]["ns"] > 0 and stats["last_inference"] > 1_700_000_000_000, stats


def refused(status, words, call):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == status and words in error.message(), (error.status(), error.message())
    else:
        raise AssertionError(f"not refused: {words}")


load = triton.InferInput("load", [2, 24], "FP32")
load.set_data_from_numpy(windows[:2])
for binary in (True, False):
    wanted = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=1)]
    top = client.infer(model, [load], outputs=wanted).as_numpy("probabilities")
    for text, label in zip(top[:, 0], labels):
        value, index, name = (text.decode() if binary else text).split(":")
        assert int(index) == label and 0.5 <= float(value) <= 1 and name, text


def infer_as(name, array, kind):
    load = triton.InferInput(name, list(array.shape), kind)
    load.set_data_from_numpy(array)
    client.infer(model, [load])


refused("404", "other", lambda: client.get_model_metadata("other"))
refused("404", "99", lambda: infer(windows[:1], True, model_version="99"))
refused("400", "24", lambda: infer(windows[:, :23].copy(), True))
refused("400", "FP32", lambda: infer_as("load", windows[:1].astype(numpy.float64), "FP64"))
refused("400", "other", lambda: infer_as("other", windows[:1], "FP32"))
