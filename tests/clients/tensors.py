"""Every kind of tensor over every way in, with a key that is replaced meanwhile: tensors.py HOST:PORT SOCKET KEYS

The agent serves identities of BYTES, FP16, BOOL and INT64 (`x` to `y`) and a model of two inputs and outputs. KEYS is the file
of its keys, of which the first line is good.
"""

import asyncio
import sys
import time

import numpy
import requests
import tritonclient.grpc as grpc
import tritonclient.http as http
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

address, socket, keys = sys.argv[1:]
key = open(keys).readline().strip()


def headers():
    """A fresh one for each call: the HTTP client writes into it."""
    return {"authorization": f"Bearer {key}"}


large = numpy.arange(200_000, dtype=numpy.int64)
tensors = {
    "identity-string": ("BYTES", numpy.array(["", "zwölf", "🦀", "x" * 5000], dtype=object)),
    "identity-f16": ("FP16", numpy.array([0.5, -65504, 6e-8, numpy.inf], dtype=numpy.float16)),
    "identity-bool": ("BOOL", numpy.array([True, False, True])),
    "identity-i64": ("INT64", large - 2**62),
}


def asked(module, name, kind, array, **more):
    tensor = module.InferInput(name, list(array.shape), kind)
    tensor.set_data_from_numpy(array, **more)
    return tensor


def same(name, given, answer):
    found = answer.as_numpy("y")
    if given.dtype == object:
        # Texts from JSON, bytes from bytes.
        texts = [text if isinstance(text, str) else text.decode() for text in found]
        assert texts == list(given), (name, texts)
    else:
        assert found.dtype == given.dtype and numpy.array_equal(found, given), (name, found)


over_http = http.InferenceServerClient(address)
# By itself this client would give the socket's path as its authority, which is none (RFC 3986).
local = [("grpc.default_authority", "localhost")]
over_socket = grpc.InferenceServerClient(f"unix:{socket}", channel_args=local)
for name, (kind, array) in tensors.items():
    for binary in (True, False):
        # JSON has neither infinities nor, for Triton's client, half floats.
        if not binary and kind == "FP16":
            continue
        # Of JSON beyond ASCII that client sends fewer bytes than it has.
        sent = array if binary or kind != "BYTES" else numpy.array(["", "plain", '"\\ \n'], dtype=object)
        inputs = [asked(http, "x", kind, sent, binary_data=binary)]
        outputs = [http.InferRequestedOutput("y", binary_data=binary)]
        same(name, sent, over_http.infer(name, inputs, outputs=outputs, headers=headers()))
    same(name, array, over_socket.infer(name, [asked(grpc, "x", kind, array)], headers=headers()))

a, b = numpy.arange(8, dtype=numpy.float32).reshape(2, 4), numpy.ones((2, 4), dtype=numpy.float32)


def check(answer):
    assert (answer.as_numpy("sum") == a + b).all() and (answer.as_numpy("difference") == a - b).all()


for module, client in ((http, over_http), (grpc, over_socket)):
    both = [asked(module, "b", "FP32", b), asked(module, "a", "FP32", a)]
    check(client.infer("two-in-two-out", both, headers=headers()))
    for wrong, words in ((both[:1], "`a` is missing"), (both + both[:1], "twice")):
        try:
            client.infer("two-in-two-out", wrong, headers=headers())
            raise AssertionError(words)
        except InferenceServerException as error:
            assert words in error.message(), error.message()


async def at_once():
    client = aio.InferenceServerClient(address)
    both = [asked(aio, "a", "FP32", a), asked(aio, "b", "FP32", b)]
    calls = [client.infer("two-in-two-out", both, headers=headers()) for _ in range(50)]
    for answer in await asyncio.gather(*calls):
        check(answer)
    await client.close()


asyncio.run(at_once())


def admits(key):
    given = {"authorization": f"Bearer {key}"} if key else {}
    over_grpc = True
    try:
        over_socket.get_server_metadata(headers=given)
    except InferenceServerException as error:
        assert error.status() == "StatusCode.UNAUTHENTICATED", error
        over_grpc = False
    status = requests.get(f"http://{address}/v2", headers=given).status_code
    assert status in (200, 401), status
    return over_grpc, status == 200


EVERYWHERE, NOWHERE = (True, True), (False, False)


# The file may be taken up between two questions.
def wait_until(admitted, key):
    deadline = time.monotonic() + 20
    while admits(key) != admitted:
        assert time.monotonic() < deadline, f"{key}: {admits(key)}, not {admitted}"
        time.sleep(0.1)


assert admits(key) == EVERYWHERE and admits("another") == admits(None) == NOWHERE
assert requests.get(f"http://{address}/v2/health/ready").status_code == 200
for lines in ([key, "the-next-key"], ["the-next-key"]):
    with open(keys, "w") as file:
        file.write("\n".join(lines) + "\n")
    wait_until(EVERYWHERE, "the-next-key")
wait_until(NOWHERE, key)
assert admits("the-next-key") == EVERYWHERE
