"""A page in the browser for those who do not program: draw from a Chinese sentence, repaint, describe, ask, search.

  pip install -e '.[cpu,demo]'
  python tools/web.py
  python tools/web.py --model runs/finetune/model --port 8000
  python tools/web.py --index data/photos_index

Open the address that it prints. The page runs on this machine and needs no network. `--host 0.0.0.0` shows it to the
local network as well; that wants `--password-file FILE` (the user is `vilg`), or `--no-password` to let everybody in.
Ctrl-C ends it.
"""
import argparse
from pathlib import Path

from vilg import cli
from vilg.errors import VilgError
from vilg.runtime import CPU_MATHS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ernie_vilg_tiny", help="name in model_zoo/ or a model folder (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to serve at (%(default)s)")
    parser.add_argument("--device", help="cpu, gpu:0 … (the first GPU when Paddle has one, else the CPU)")
    parser.add_argument("--cpu-math", choices=CPU_MATHS, help="precision of products on a CPU")
    parser.add_argument("--index", metavar="DIR", help="an index of tools/search.py, to search in")
    parser.add_argument("--encoder", default="ernie_vil_tiny", help="the model that built the index (%(default)s)")
    protection = parser.add_mutually_exclusive_group()
    protection.add_argument("--password-file", metavar="FILE", help="its first line is what visitors must type")
    protection.add_argument("--no-password", action="store_true", help="let everybody in who can reach --host")
    return parser.parse_args()


def password_in(file: str) -> str:
    """The first line of a file. Raises VilgError when it has none."""
    try:
        line = Path(file).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, ValueError) as error:
        raise VilgError(f"{file}: cannot be read ({error}); name another file with --password-file") from None
    if not line:
        raise VilgError(f"{file}: its first line is empty; write the password there")
    return line


def main() -> int:
    arguments = parse()
    password = password_in(arguments.password_file) if arguments.password_file else None
    from vilg.app import page as web

    web.serve(arguments.model, arguments.host, arguments.port, device=arguments.device, cpu_math=arguments.cpu_math,
              password=password, unprotected=arguments.no_password, index=arguments.index, encoder=arguments.encoder)
    return 0


if __name__ == "__main__":
    cli.run(main)
