"""A collector of traces that takes OTLP over HTTP by its published schema alone: says where, and then each span, a line of JSON each."""

import base64
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


def plain(attributes):
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in attributes}


def hexadecimal(parsed):
    # protobuf's JSON has bytes in base64 where OTLP has them in hexadecimal.
    return base64.b64encode(parsed).decode()


class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/json")
        for resource in json_format.Parse(body, ExportTraceServiceRequest()).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    told = {
                        "trace": hexadecimal(span.trace_id),
                        "span": hexadecimal(span.span_id),
                        "parent": hexadecimal(span.parent_span_id),
                        "state": span.trace_state,
                        "name": span.name,
                        "kind": Span.SpanKind.Name(span.kind),
                        "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano,
                        "failed": span.status.code == Status.STATUS_CODE_ERROR,
                        "attributes": plain(span.attributes),
                        "resource": plain(resource.resource.attributes),
                    }
                    print(json.dumps(told), flush=True)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Collector)
print(f"ready http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
