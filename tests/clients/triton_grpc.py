"""tritonclient[grpc] from PyPI against an agent: triton_grpc.py HOST:PORT MODEL TEST.csv"""

import asyncio
import csv
import sys

import numpy
import tritonclient.grpc as triton
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException

address, model, path = sys.argv[1:]
with open(path, newline="") as file:
    rows = list(csv.reader(file))[1:]
truth = numpy.array([int(row[0]) for row in rows])
windows = numpy.array([row[1:] for row in rows], dtype=numpy.float32)

client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
assert not client.is_model_ready("other")
assert "statistics" in client.get_server_metadata().extensions
about = client.get_model_metadata(model, as_json=True)
assert about["inputs"] == [{"name": "load", "datatype": "FP32", "shape": ["-1", "24"]}], about
assert about["platform"] == "onnx_onnxv1", about
version = about["versions"][0]
config = client.get_model_config(model).config
assert config.input[0].name == "load" and list(config.input[0].dims) == [-1, 24], config
assert [entry.name for entry in client.get_model_repository_index().models] == [model]


def asked(windows):
    load = triton.InferInput("load", list(windows.shape), "FP32")
    load.set_data_from_numpy(windows)
    return [load]


def answered(answer):
    return [answer.as_numpy(name) for name in ("label", "probabilities")]


def infer(windows, **more):
    outputs = [triton.InferRequestedOutput(name) for name in ("label", "probabilities")]
    answer = client.infer(model, asked(windows), outputs=outputs, request_id="r-1", **more)
    assert answer.get_response().id == "r-1"
    return answered(answer)


labels, probabilities = infer(windows)
assert labels.shape == (len(truth),) and probabilities.shape == (len(truth), 2)
accuracy = (labels == truth).mean()
assert accuracy > 0.95, f"accuracy {accuracy}, the sample's README says 0.9689"
again = infer(windows, model_version=version, client_timeout=60)
assert (again[0] == labels).all() and numpy.allclose(again[1], probabilities, atol=1e-6)
everything = client.infer(model, asked(windows[:3]))
assert [output.name for output in everything.get_response().outputs] == ["probabilities", "label"]
lone = client.infer(model, asked(windows[:3]), outputs=[triton.InferRequestedOutput("label")])
assert lone.as_numpy("probabilities") is None and (lone.as_numpy("label") == labels[:3]).all()


async def at_once():
    async with aio.InferenceServerClient(address) as client:
        calls = [client.infer(model, asked(windows[i : i + 1])) for i in range(50)]
        for i, answer in enumerate(await asyncio.gather(*calls)):
            assert answer.as_numpy("label")[0] == labels[i]


asyncio.run(at_once())

before = client.get_inference_statistics(model).model_stats[0]
assert before.inference_count >= 2 * len(truth) + 56 and before.execution_count >= 54, before
assert before.memory_usage[0].type == "CPU" and before.memory_usage[0].byte_size > 0, before
assert before.inference_stats.compute_infer.ns > 0 and before.last_inference > 1_700_000_000_000


def refused(code, words, call):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}" and words in error.message(), (error.status(), error.message())
    else:
        raise AssertionError(f"not refused: {words}")


def infer_as(name, array, kind):
    load = triton.InferInput(name, list(array.shape), kind)
    load.set_data_from_numpy(array)
    client.infer(model, [load])


refused("NOT_FOUND", "other", lambda: client.get_model_metadata("other"))
refused("NOT_FOUND", "99", lambda: infer(windows[:1], model_version="99"))
refused("INVALID_ARGUMENT", "24", lambda: infer(windows[:, :23].copy()))
refused("INVALID_ARGUMENT", "FP32", lambda: infer_as("load", windows[:1].astype(numpy.float64), "FP64"))
refused("INVALID_ARGUMENT", "other", lambda: infer_as("other", windows[:1], "FP32"))
refused("DEADLINE_EXCEEDED", "", lambda: infer(numpy.repeat(windows, 5, axis=0), client_timeout=0.005))
refused("INVALID_ARGUMENT", "sequence_id", lambda: infer(windows[:1], sequence_id=7))
refused("UNAVAILABLE", "timeout", lambda: infer(numpy.repeat(windows, 5, axis=0), timeout=1))
refused("UNIMPLEMENTED", "no such method", lambda: client.get_trace_settings())
refused("RESOURCE_EXHAUSTED", "the limit of", lambda: infer(numpy.zeros((90000, 24), dtype=numpy.float32)))

# What was cancelled is not scored, and the agent goes on.
call = client.async_infer(model, asked(numpy.repeat(windows, 5, axis=0)), lambda result, error: None)
call.cancel()
assert client.is_server_ready() and (infer(windows[:1])[0] == labels[:1]).all()

top = client.infer(model, asked(windows[:2]), outputs=[triton.InferRequestedOutput("probabilities", class_count=1)])
for text, label in zip(top.as_numpy("probabilities")[:, 0], labels):
    value, index, name = text.decode().split(":")
    assert int(index) == label and 0.5 <= float(value) <= 1 and name, text
