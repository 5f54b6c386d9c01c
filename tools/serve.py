"""Serve models to many clients at once, by the API that OpenAI's clients speak.

  pip install 'vilg[cpu,serve]'
  python tools/serve.py ernie_vilg_tiny ernie_vil_tiny

  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
  client.images.generate(model="ernie_vilg_tiny", prompt="一个红色的圆形", extra_body={"seed": 7}).data[0].b64_json

Pictures of all clients are drawn side by side; what a client gets does not depend on the others. It draws
(/v1/images/generations, /v1/images/edits), describes and answers (/v1/chat/completions), makes vectors
(/v1/embeddings), ranks (/v1/rank), searches (/v1/search, with --index) and takes PaddleHub's clients
(/predict/ernie_vilg). /docs lists the fields, /metrics is for Prometheus. Only this machine reaches it; `--host
0.0.0.0` wants --api-key-file FILE (a key a line), or --no-key to let everybody in. Ctrl-C or SIGTERM end it when what
is being drawn is done.
"""
import argparse
import logging

from vilg import cli
from vilg.runtime import CPU_MATHS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names in model_zoo/ or model folders")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to serve at (%(default)s)")
    parser.add_argument("--max-rows", type=int, default=32, help="pictures drawn at a time (%(default)s)")
    parser.add_argument("--wait-ms", type=float, default=5.0,
                        help="how long the first picture waits for company (%(default)s)")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait before others are told to come "
                        "again, by 429 (%(default)s)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a request may take (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with its own models (%(default)s)")
    parser.add_argument("--index", action="append", default=[], metavar="DIR",
                        help="an index of tools/search.py to search in; its model must be served too")
    parser.add_argument("--device", help="cpu, gpu:0 … (the first GPU when Paddle has one, else the CPU)")
    parser.add_argument("--cpu-math", choices=CPU_MATHS, help="precision of products on a CPU")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="another name that clients call this server by")
    protection = parser.add_mutually_exclusive_group()
    protection.add_argument("--api-key-file", metavar="FILE", help="a key a line, one of which clients must show")
    protection.add_argument("--no-key", action="store_true", help="let everybody in who can reach --host")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s")
    from vilg.app.serving import server

    server.serve(server.ServerConfig(
        arguments.models, arguments.host, arguments.port, arguments.max_rows, arguments.wait_ms, arguments.queue,
        arguments.timeout, arguments.index, arguments.api_key_file, arguments.no_key, arguments.allow_host,
        arguments.device, arguments.cpu_math, arguments.workers))
    return 0


if __name__ == "__main__":
    cli.run(main)
