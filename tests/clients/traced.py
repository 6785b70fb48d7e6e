"""tritonclient over HTTP and gRPC, each with a span of its own: traced.py HOST:PORT MODEL TRACEPARENT_HTTP TRACEPARENT_GRPC"""

import sys

import numpy
import tritonclient.grpc
import tritonclient.http

address, model, *parents = sys.argv[1:]
for triton, parent in zip((tritonclient.http, tritonclient.grpc), parents, strict=True):
    load = triton.InferInput("load", [1, 24], "FP32")
    load.set_data_from_numpy(numpy.full((1, 24), 0.5, dtype=numpy.float32))
    headers = {"traceparent": parent, "tracestate": "edgewise=test"}
    triton.InferenceServerClient(address).infer(model, [load], headers=headers)
