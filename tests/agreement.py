"""The engines of another machine's agent give what ONNX Runtime gave here: agreement.py AGENT BUNDLES [ONNXRUNTIME]

BUNDLES is what the engine's test `agreement` leaves in target/agreement: bundles whose golden sample holds an input and
what came of it, in the folder `both` where tract gave the same, and in `onnxruntime` where tract refuses the model, which
it must do there as well. AGENT is the agent that was built for the other machine, ONNXRUNTIME that machine's library;
without one its tract alone is held to them.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

agent, bundles, library = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]

# What loading a model and scoring it once may take, under an emulator on a busy machine.
LONGEST_S = 300

# What the agent says, with its exit code 65, of a model that this engine does not take.
REFUSED = "refuses the model"


def score(bundle, provider, inputs):
    """What the agent answers, or None if it refuses the model."""
    command = [agent, "score", bundle, "--provider", provider, "--input", "-"]
    command += [f"--onnxruntime={path}" for path in library]
    sent = json.dumps({"inputs": inputs})
    done = subprocess.run(command, input=sent, capture_output=True, text=True, timeout=LONGEST_S)
    if done.returncode == 65 and REFUSED in done.stderr:
        return None
    if done.returncode != 0:
        raise ValueError(f"exit code {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)["outputs"]


def largest_difference(expected, given, rtol, atol):
    """Of all elements; the agent's own rule says how large one may be. JSON has null where a number is not finite."""
    largest = 0.0
    for one, other in zip(expected, given, strict=True):
        for key in ("name", "shape", "datatype"):
            if one[key] != other[key]:
                raise ValueError(f"output {one} became {other}")
        for wanted, element in zip(one["data"], other["data"], strict=True):
            if wanted == element:
                continue
            if not one["datatype"].startswith("FP") or None in (wanted, element):
                raise ValueError(f"{one['name']}: {element} is not {wanted}")
            difference = abs(wanted - element)
            if difference > atol + rtol * abs(wanted):
                raise ValueError(f"{one['name']}: {element} is too far from {wanted}")
            largest = max(largest, difference)
    return largest


def check(job):
    """One line that says how it went, and whether that is well."""
    bundle, provider = job
    name = f"{bundle.name} on {provider}"
    begun = time.monotonic()
    try:
        golden = tomllib.loads((bundle / "model.toml").read_text())["golden"]
        [sample] = json.loads((bundle / golden["file"]).read_text())["samples"]
        outputs = score(bundle, provider, sample["inputs"])
        refuses = provider == "tract" and bundle.parent.name != "both"
        if (outputs is None) != refuses:
            return f"{name}: {'refused' if outputs is None else 'not refused'}, other than here", False
        if outputs is None:
            return f"{name}: refused, as here", True
        difference = largest_difference(sample["outputs"], outputs, golden["rtol"], golden["atol"])
        return f"{name}: at most {difference:.1e} apart, {time.monotonic() - begun:.1f} s", True
    except (ValueError, subprocess.TimeoutExpired) as error:
        return f"{name}: {error}", False


found = sorted(path.parent for path in bundles.glob("*/*/golden.json"))
if not found:
    sys.exit(f"no bundle in {bundles}: run the engine's tests")
jobs = [(bundle, provider) for bundle in found for provider in (["tract", "cpu"] if library else ["tract"])]
wrong = 0
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for line, well in pool.map(check, jobs):
        print(line, flush=True)
        wrong += not well
sys.exit(f"{wrong} of {len(jobs)} are not as here" if wrong else 0)
