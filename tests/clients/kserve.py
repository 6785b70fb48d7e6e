"""KServe's own clients from PyPI, over HTTP and gRPC, against an agent: kserve.py HOST:PORT MODEL TEST.csv"""

import asyncio
import csv
import sys

# This file's name is the package's.
sys.path.pop(0)

import grpc
import httpx
import numpy
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig

address, model, path = sys.argv[1:]
with open(path, newline="") as file:
    rows = list(csv.reader(file))[1:20]
windows = numpy.array([row[1:] for row in rows], dtype=numpy.float32)


def asked(windows, binary):
    load = InferInput("load", list(windows.shape), "FP32")
    load.set_data_from_numpy(windows, binary_data=binary)
    return InferRequest(model, [load], request_id="a-request")


def answered(answer):
    assert (answer.id, answer.model_name) == ("a-request", model), answer
    return {output.name: output.as_numpy() for output in answer.outputs}


async def over_http():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    url = f"http://{address}"
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, model)
    answers = [answered(await client.infer(url, asked(windows, binary), model_name=model)) for binary in (False, True)]
    try:
        await client.infer(url, asked(windows[:, 1:], False), model_name=model)
        raise AssertionError("a shape that does not fit is refused")
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == 400 and "load" in error.response.text, error.response.text
    await client.close()
    return answers


async def over_grpc():
    client = InferenceGRPCClient(address)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready(model)
    answers = [answered(await client.infer(asked(windows, binary))) for binary in (False, True)]
    try:
        await client.infer(asked(windows[:, 1:], True))
        raise AssertionError("a shape that does not fit is refused")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "load" in error.details(), error
    await client.close()
    return answers


answers = asyncio.run(over_http()) + asyncio.run(over_grpc())
for answer in answers:
    assert answer["label"].shape == (len(windows),), answer
    assert numpy.array_equal(answer["label"], answers[0]["label"])
    assert numpy.allclose(answer["probabilities"], answers[0]["probabilities"], atol=1e-6)
