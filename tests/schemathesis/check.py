"""Throws made-up requests at the API of a served daemon and at the simulated Belvo, and holds the answers against their schemas.

    check.py PROGRAM [BELVO]

PROGRAM is the built vinculo. BELVO is the description of Belvo's API, which is not part of this repository: without it, that
half is skipped, and said so. Nothing may be a server's error, and no answer may break its schema. Where the simulator rightly
differs from Belvo's file, DIFFERENCES says how and why.
"""

import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import yaml

# Made-up requests for each operation, besides those that go round its limits; the seed makes them the same each time.
EXAMPLES = "20"
SEED = "20261123"

TOKEN = secrets.token_urlsafe(24)
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    belvo = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        is_right = daemon(program, folder)
        if belvo is None or not belvo.exists():
            print("schemathesis: the simulator was SKIPPED, because Belvo's file is not here")
        else:
            is_right &= simulator(program, folder, belvo)
    if not is_right:
        sys.exit("schemathesis: failed")
    print("schemathesis: passed")


def daemon(program, folder):
    """The API of a daemon with some simulated people."""
    belvo, webhooks, admin = (free_address() for _ in range(3))
    (folder / "vinculo.toml").write_text(CONFIG.format(belvo=belvo, webhooks=webhooks, admin=admin, token=TOKEN))
    (folder / "jobs").mkdir()
    (folder / "jobs/compare.toml").write_text(
        'schedule = "0 0 1 1 *"\ntimezone = "America/Sao_Paulo"\naction = "sync-links"\n'
    )
    simulate = [program, "simulate", "--listen", belvo, "--people", "10", "--no-limit"]
    simulate += ["--webhook-latency", "100ms", "--webhook", f"http://{webhooks}/webhooks/belvo"]
    simulate += ["--webhook-authorization", AUTHORIZATION]
    with (
        Running([program, "serve", "--config", folder / "vinculo.toml"], f"http://{admin}/readyz", folder / "serve.log"),
        Running(simulate, f"http://{belvo}/_sim/truth", folder / "simulate.log"),
    ):
        return schemathesis(
            "the API of the daemon",
            ["--checks", CHECKS + ",ignored_auth,unsupported_method", "--header", f"Authorization: Bearer {TOKEN}"],
            f"http://{admin}/v1/openapi.json",
            folder,
        )


def simulator(program, folder, file):
    """The simulated Belvo, against Belvo's own description."""
    address = free_address()
    document = yaml.safe_load(file.read_text())
    for what, why, mend in DIFFERENCES:
        print(f"schemathesis: the simulator differs: {what}, because {why}")
        mend(document)
    described = folder / "belvo.json"
    # Dates that YAML reads as dates are texts in JSON.
    described.write_text(json.dumps(document, default=str))
    simulate = [program, "simulate", "--listen", address, "--people", "10", "--no-limit"]
    with Running(simulate, f"http://{address}/_sim/truth", folder / "simulate.log"):
        auth = ["--auth", "simulated-secret-id:simulated-secret-password", "--url", f"http://{address}"]
        return schemathesis("the simulator", ["--checks", CHECKS, *auth], described, folder)


def schemathesis(name, arguments, document, folder):
    command = [pathlib.Path(sys.executable).with_name("st"), "run", document, *arguments]
    # One worker: before 3.11.8, Python's parser counts its depth for all threads together, and then fails in one of them
    # (python/cpython#106905).
    command += ["--max-examples", EXAMPLES, "--seed", SEED, "--phases", "examples,coverage,fuzzing", "--workers", "1"]
    command += ["--suppress-health-check", "all", "--request-timeout", "30", "--warnings", "off", "--no-color"]
    environment = {**os.environ, "NO_PROXY": "*", "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode == 0:
        lines = [line for line in ran.stdout.splitlines() if "generated" in line or "tested" in line.lower()]
        print(f"schemathesis: {name}: no failure:", *(line.strip() for line in lines))
    else:
        print(ran.stdout, ran.stderr, f"schemathesis: {name} failed", sep="\n")
    return ran.returncode == 0


class Running:
    """A program that runs until the block ends, and must end well then."""

    def __init__(self, command, url, log):
        self.command, self.url, self.log = command, url, log

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while True:
            try:
                return OPENER.open(self.url, timeout=5)
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    sys.exit(f"{self.command[1]} does not answer:\n{self.log.read_text()}")
                time.sleep(0.1)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        if code != 0:
            sys.exit(f"{self.command[1]} ended with {code}:\n{self.log.read_text()}")


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "127.0.0.1:{}".format(listener.getsockname()[1])


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"

AUTHORIZATION = "Bearer schemathesis-webhook-authorization"

CONFIG = """[belvo]
base_url = "http://{belvo}"
token_url = "http://{belvo}"
widget_url = "http://{belvo}/widget/"
secret_id = "simulated-secret-id"
secret_password = "simulated-secret-password"
budget = {{ requests = 1000000, per = "30s" }}
[widget]
callback_urls = {{ success = "it://success", exit = "it://exit", event = "it://event" }}
[widget.branding]
company_icon = "https://it.example/icon.svg"
company_logo = "https://it.example/logo.svg"
company_name = "It"
company_terms_url = "https://it.example/terms/"
[webhook]
listen = "{webhooks}"
authorization = ["Bearer schemathesis-webhook-authorization"]
allow_ips = ["127.0.0.1"]
[admin]
listen = "{admin}"
token = "{token}"
[lake]
url = "lake"
"""



def gate(document):
    """Each operation may be refused with a page."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if not isinstance(operation, dict) or "403" not in operation.get("responses", {}):
                continue
            refused = operation["responses"]["403"]
            while "$ref" in refused:
                refused = follow(document, refused["$ref"])
            content = {**refused.get("content", {}), "text/html": {"schema": {"type": "string"}}}
            operation["responses"]["403"] = {**refused, "content": content}


def resume(document):
    """A login that is resumed too late is a bad request."""
    responses = document["paths"]["/api/links/"]["patch"]["responses"]
    responses["400"] = document["paths"]["/api/links/"]["post"]["responses"]["400"]


def past_the_end(document):
    """A page after the last one is not found."""
    responses = document["paths"]["/api/links/"]["get"]["responses"]
    responses["404"] = document["paths"]["/api/links/{id}/"]["get"]["responses"]["404"]


def follow(document, reference):
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


# What the simulator does otherwise than Belvo's file says: what, why, and the change of the file that says so.
DIFFERENCES = [
    (
        "a request that does not conform is refused with 403 and a page",
        "Belvo's guard stands in front of its API and knows no JSON; the file describes the API alone",
        gate,
    ),
    (
        "resuming a login (PATCH /api/links/) is answered with 400 session_expired",
        "Belvo's list of errors has it with 400; the file lists no 400 there, and the simulator has no login to resume",
        resume,
    ),
    (
        "a page after the last one of the links is answered with 404",
        "the file does not say what Belvo answers there; its other lists have a 404",
        past_the_end,
    ),
]


if __name__ == "__main__":
    main()
