"""What the quickstart's Python scripts share: the cluster's API and the gateway."""

import json
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
STATE = ROOT / ".quickstart"
NAMESPACE = "quickstart"
API = f"/apis/llmops.dev/v1alpha1/namespaces/{NAMESPACE}"


def fail(message):
    sys.exit(f"quickstart: {message}")


def state(name):
    try:
        return (STATE / name).read_text().strip()
    except OSError:
        fail(f"{STATE / name} is missing; run `make quickstart` first")


class Cluster:
    """The API server through one `kubectl proxy`, which knows how to authenticate."""

    def __enter__(self):
        command = [ROOT / "quickstart/kubectl", "proxy", "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        told = self.process.stdout.readline()
        port = re.search(r":(\d+)", told)
        if not port:
            self.process.kill()
            fail("the cluster does not answer; run `make quickstart`")
        self.address = f"http://127.0.0.1:{port[1]}"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def get(self, path):
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return json.load(answer)

    def resource(self, plural, name):
        return self.get(f"{API}/{plural}/{name}")


class Gateway:
    def __init__(self):
        self.address, self.key = state("gateway"), state("key")

    def call(self, path, body=None):
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.key}"})
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode(errors='replace')[:500]}") from None

    def ask(self, question, user):
        return self.call(f"/v1/flows/{NAMESPACE}/ask", {"inputs": {"question": question}, "user": user})


def table(rows):
    """Prints rows of texts in columns."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())
