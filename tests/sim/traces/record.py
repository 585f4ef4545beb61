#!/usr/bin/env python3
"""Asks a real API server the requests of semantics.yaml and writes its answers to semantics.json.

Usage: record.py URL TOKEN CA_FILE   (a fresh devcluster with our CRDs, its controller manager and scheduler stopped)
"""
import json, pathlib, ssl, sys, urllib.error, urllib.request
import yaml

TYPES = {"apply": "application/apply-patch+yaml", "merge": "application/merge-patch+json",
         "strategic": "application/strategic-merge-patch+json", "json": "application/json-patch+json"}


def main():
    url, token, ca = sys.argv[1:]
    folder = pathlib.Path(__file__).parent
    context = ssl.create_default_context(cafile=ca)
    known, answers = {}, []
    for step in yaml.safe_load((folder / "semantics.yaml").read_text()):
        base = step["path"].removesuffix("/status")
        body = json.dumps(step["body"]) if "body" in step else None
        for name, value in known.get(base, {}).items():
            body = body and body.replace(f'"${name}"', json.dumps(value))
        query = f"?{step['query']}" if "query" in step else ""
        request = urllib.request.Request(url + step["path"] + query, method=step["method"],
                                         data=body.encode() if body else None)
        request.add_header("Authorization", f"Bearer {token}")
        request.add_header("Content-Type", TYPES.get(step.get("type"), "application/json"))
        request.add_header("User-Agent", "recorder")
        try:
            with urllib.request.urlopen(request, context=context) as reply:
                code, answer = reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            code, answer = error.code, json.load(error)
        meta = answer.get("metadata", {})
        if "uid" in meta:
            known[base] = {"uid": meta["uid"], "rv": meta["resourceVersion"]}
        answers.append({"name": step["name"], "code": code, "answer": answer})
        print(code, step["name"], answer.get("message", ""), file=sys.stderr)
    text = ",\n".join(json.dumps(answer) for answer in answers)
    (folder / "semantics.json").write_text(f"[\n{text}\n]\n")


main()
