"""The engines of another machine's agent give what those of this one gave: agreement.py AGENT BUNDLES [ONNXRUNTIME]

BUNDLES is what the engine's test `agreement` leaves in target/agreement: bundles whose golden samples hold what ONNX
Runtime gave here, in the folder `both` where tract runs them too, and in `onnxruntime` where tract refuses them, which
it must do there as well. AGENT is the agent that was built for the other machine, ONNXRUNTIME that machine's library;
without one its tract alone is held to them.
"""

import json
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

agent, bundles, library = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]

# What a check may take that times two engines for a second each, under an emulator on a busy machine.
LONGEST_S = 300


def check(bundle):
    """The largest difference by engine, and what is wrong, if anything is."""
    engines = {"tract": bundle.parent.name == "both", **({"cpu": True} if library else {})}
    command = [agent, "check", bundle, "--json"] + [f"--onnxruntime={path}" for path in library]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
    if done.returncode != (0 if any(engines.values()) else 65):
        return {}, f"exit code {done.returncode}: {done.stderr.strip()}"
    report = json.loads(done.stdout)
    verdicts = {verdict["provider"]: verdict for verdict in report["engines"]}
    if {name: verdict["passed"] for name, verdict in verdicts.items()} != engines:
        return {}, f"other engines than {engines} passed: {json.dumps(report['engines'])}"
    if not all(agreement["agree"] for agreement in report["agreements"]):
        return {}, f"the engines do not agree: {json.dumps(report['agreements'])}"
    return {name: verdicts[name]["largest_difference"] for name, runs in engines.items() if runs}, None


found = sorted(path.parent for path in bundles.glob("*/*/golden.json"))
if not found:
    sys.exit(f"no bundle in {bundles}: run the engine's tests")
wrong = 0
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for bundle, (differences, why) in zip(found, pool.map(check, found)):
        figures = ", ".join(f"{name} {difference:.1e} apart" for name, difference in differences.items())
        print(f"{bundle.name}: {why or figures or 'refused, as here'}", flush=True)
        wrong += why is not None
sys.exit(f"{wrong} of {len(found)} bundles are not scored as here" if wrong else 0)
