"""A page that says where it runs. `garrison push examples/hello-flask`"""

import json
import os

from flask import Flask, Response, jsonify

app = Flask(__name__)


@app.get("/")
def hello() -> Response:
    application = json.loads(os.environ.get("VCAP_APPLICATION", "{}"))
    lines = [
        f"Hello from instance {os.environ.get('CF_INSTANCE_INDEX', '?')}"
        f" of {application.get('application_name', 'an app')}",
        f"memory limit: {os.environ.get('MEMORY_LIMIT', 'none')}",
        f"pid: {os.getpid()}",
        "VCAP_APPLICATION:",
        json.dumps(application, indent=2, sort_keys=True),
    ]
    return Response("\n".join(lines) + "\n", mimetype="text/plain")


@app.get("/env.json")
def environment() -> Response:
    return jsonify(
        index=int(os.environ.get("CF_INSTANCE_INDEX", "-1")),
        memory_limit=os.environ.get("MEMORY_LIMIT"),
        application=json.loads(os.environ.get("VCAP_APPLICATION", "{}")),
    )
