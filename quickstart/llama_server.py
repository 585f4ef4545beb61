"""llama.cpp's server with llama-server's own flags, from the package xllamacpp."""

import argparse
import json
import os
import signal
import sys
import threading
import time
import urllib.request

# Longest wait for running answers after SIGTERM, in seconds; the pod's grace period may be shorter.
DRAIN_SECONDS = 55


def arguments():
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    add = parser.add_argument
    add("-m", "--model", required=True, help="GGUF file")
    add("-a", "--alias", help="name under which the model is served")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8080)
    add("-c", "--ctx-size", type=int, default=0, help="tokens of all slots together; 0: the model's own")
    add("-np", "--parallel", type=int, default=1, help="slots, the requests under way at once")
    add("-t", "--threads", type=int, default=-1)
    add("-tb", "--threads-batch", type=int)
    add("-b", "--batch-size", type=int)
    add("-ub", "--ubatch-size", type=int)
    add("-n", "--predict", "--n-predict", type=int, default=-1)
    add("-ngl", "--gpu-layers", "--n-gpu-layers", type=int, default=-1)
    add("--embedding", "--embeddings", dest="embeddings", action="store_true")
    add("--rerank", "--reranking", dest="reranking", action="store_true")
    add("--pooling", choices=["none", "mean", "cls", "last", "rank"])
    add("--metrics", action="store_true")
    add("--no-warmup", action="store_true")
    add("-lv", "--verbosity", "--log-verbosity", type=int, default=1)
    known, unknown = parser.parse_known_args()
    if unknown:
        parser.error(
            f"this wrapper does not know {' '.join(unknown)}; it passes the flags of --help on to llama.cpp, "
            "and the container image knows all of them"
        )
    if not os.path.isfile(known.model):
        parser.exit(1, f"llama-server: there is no model file {known.model}\n")
    return known


def parameters(known, xllamacpp):
    p = xllamacpp.CommonParams()
    p.model.path = known.model
    p.model_alias = {known.alias or os.path.basename(known.model)}
    p.hostnames, p.port = [known.host], known.port
    p.n_ctx, p.n_parallel, p.n_predict, p.n_gpu_layers = known.ctx_size, known.parallel, known.predict, known.gpu_layers
    p.cpuparams.n_threads = known.threads
    p.cpuparams_batch.n_threads = known.threads if known.threads_batch is None else known.threads_batch
    if known.batch_size:
        p.n_batch = known.batch_size
    if known.ubatch_size:
        p.n_ubatch = known.ubatch_size
    pooling = "rank" if known.reranking else known.pooling
    if pooling:
        p.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    p.embedding = known.embeddings or known.reranking
    p.endpoint_metrics, p.endpoint_slots, p.ui = known.metrics, True, False
    p.warmup = not known.no_warmup
    p.verbosity = known.verbosity
    return p


def busy(address):
    """Whether a slot still answers a request."""
    try:
        with urllib.request.urlopen(f"{address}/slots", timeout=2) as answer:
            return any(slot.get("is_processing") for slot in json.load(answer))
    except (OSError, ValueError):
        return False


def drain(address):
    """Waits until two looks in a row find no running answer."""
    end, quiet = time.monotonic() + DRAIN_SECONDS, 0
    while quiet < 2 and time.monotonic() < end:
        quiet = 0 if busy(address) else quiet + 1
        time.sleep(0.2)


def main():
    known = arguments()
    import xllamacpp

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    address = f"http://{known.host}:{known.port}"
    print(f"llama-server: loading {known.model}", flush=True)
    try:
        server = xllamacpp.Server(parameters(known, xllamacpp))
    except Exception as error:  # the package raises plain exceptions of C++
        sys.exit(f"llama-server: cannot serve {known.model} on {address}: {error}")
    print(f"llama-server: {known.alias or known.model} answers on {address}", flush=True)
    stop.wait()
    print("llama-server: stopping when the running answers are done", flush=True)
    drain(address)
    # The server's threads end with the process; its destructor would wait for open keep-alive connections.
    sys.stdout.flush()
    os._exit(0 if server else 1)


if __name__ == "__main__":
    main()
