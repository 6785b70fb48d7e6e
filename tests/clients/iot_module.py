"""Microsoft's azure-iot-device as a module in the environment that IoT Edge gives: iot_module.py [TOKEN_SECONDS]

It says `ready` once it listens, tells what it gets in reported properties, answers methods, passes inputs on to the
output `echo`, and ends with the method `end`.
"""

import sys
import threading

from azure.iot.device import IoTHubModuleClient, Message, MethodResponse

seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3600
client = IoTHubModuleClient.create_from_edge_environment(sastoken_ttl=seconds, connection_retry_interval=1)
end = threading.Event()


def patch(desired):
    client.patch_twin_reported_properties({"patch": None})
    client.patch_twin_reported_properties({"patch": {key.strip("$"): value for key, value in desired.items()}})


def method(request):
    known = {"double": lambda n: n * 2, "nothing": lambda _: None, "end": lambda _: None}
    if request.name in known:
        answer = MethodResponse.create_from_method_request(request, 200, known[request.name](request.payload))
    else:
        answer = MethodResponse.create_from_method_request(request, 404, {"unknown": request.name})
    client.send_method_response(answer)
    if request.name == "end":
        end.set()


def message(received):
    passed = Message(received.data, message_id=received.message_id)
    passed.correlation_id = received.correlation_id
    # Who sent it is among them, which is for edgeHub alone to say.
    own = {key: value for key, value in received.custom_properties.items() if not key.startswith("$.")}
    passed.custom_properties = {**own, "input": received.input_name}
    client.send_message_to_output(passed, "echo")


client.connect()
# First, for this subscribes to the twin's answers: with a patch handler, each connect begins with a read of the twin, and
# one that is never answered is the last one.
twin = client.get_twin()
client.on_twin_desired_properties_patch_received = patch
client.on_method_request_received = method
client.on_message_received = message
client.patch_twin_reported_properties({"seen": {key.strip("$"): value for key, value in twin["desired"].items()}})

awkward = Message('{"boxes": []}', message_id="id 1/+&=", content_encoding="utf-8", content_type="application/json")
awkward.correlation_id = "corr#1"
awkward.custom_properties = {"a&b=c": "50%+#?", "empty": "", "model": "yolo v8 ä/€"}
client.send_message_to_output(awkward, "detections")
client.send_message(Message(b"\x00\xff"))
print("ready", flush=True)
end.wait(100)
client.shutdown()
