"""The entry script with which Azure ML's inference server scores what the bench asks: numpy and ONNX Runtime, nothing else.

AZUREML_MODEL_DIR holds one .onnx; SCORE_THREADS says how many threads a score may take.
"""

import json
import os
import pathlib

import numpy
import onnxruntime


def init():
    global session
    [model] = pathlib.Path(os.environ["AZUREML_MODEL_DIR"]).glob("*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["SCORE_THREADS"])
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(raw_data):
    rows = numpy.array(json.loads(raw_data)["data"], dtype=numpy.float32)
    answers = session.run(None, {session.get_inputs()[0].name: rows})
    if len(answers) == 1:
        return answers[0].tolist()
    return {output.name: answer.tolist() for output, answer in zip(session.get_outputs(), answers)}
