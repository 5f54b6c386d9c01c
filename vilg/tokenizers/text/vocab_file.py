"""``vocab.txt`` (a token a line, its id the line's number or behind a tab; what is none is refused at once) and the
``tokenizer_config.json`` beside it."""
import json
import re
from collections.abc import Sequence
from pathlib import Path

from vilg.errors import VilgError

LONGEST_LINE = 1000  # bytes; the longest token of ERNIE's and BERT's vocabularies has fewer than 60
LARGEST_FILE = 64_000_000  # bytes; a million tokens take about ten
_NUMBERED = re.compile(r"([^\t]+)\t(\d{1,9})", re.ASCII)  # a line that names its token's id


def read_vocab(path: Path) -> list[str]:
    """The tokens in the order of their ids.

    Raises VilgError, naming the line, for a file that is missing, is not UTF-8, is larger than any vocabulary, or holds
    a line that is no token, a token twice, or ids that leave one out.
    """
    lines = _read_lines(path)
    while lines and not lines[-1]:  # an editor adds blank lines at the end; one further up is a token
        lines.pop()
    tokens = _by_number(path, lines) if lines and _NUMBERED.fullmatch(lines[0]) else lines
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if first.setdefault(token, index) != index:
            raise VilgError(f"{path}: the token {token!r} has two ids, {first[token]} and {index} (counted from 0); "
                            "leave one of the two lines out, or fetch the file again")
    return tokens


def read_settings(path: Path) -> dict:
    """``tokenizer_config.json`` as a mapping, empty where there is none. Raises VilgError for what is no mapping."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VilgError(f"{path}: not a JSON file ({error}); mend it or leave it out") from None
    if not isinstance(settings, dict):
        raise VilgError(f"{path}: a mapping of settings is expected, found {type(settings).__name__}")
    return settings


def vocab_text(tokens: Sequence[str]) -> str:
    """The content of ``vocab.txt``: one token a line."""
    return "".join(f"{token}\n" for token in tokens)


def write_vocab(folder: Path, tokens: Sequence[str], lowercase: bool, special: dict[str, str],
                name: str = "vocab.txt") -> None:
    """Write the tokens, and as ``tokenizer_config.json`` what else decides the ids, into ``folder``.

    Under another ``name`` the tokens stand alone: the settings beside them are those of the folder's ``vocab.txt``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(vocab_text(tokens), encoding="utf-8", newline="\n")
    if name == "vocab.txt":
        settings = {"do_lower_case": lowercase, **{f"{kind}_token": token for kind, token in special.items()}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
                                                      encoding="utf-8")


def _read_lines(path: Path) -> list[str]:
    content = bytearray()
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 2):
                number += 1
                if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
                    raise VilgError(f"{path}: line {number} has more than {LONGEST_LINE} bytes, so it is no token; "
                                    "name a vocab.txt of one token a line")
                content += line
                if len(content) > LARGEST_FILE:
                    raise VilgError(f"{path}: is larger than {LARGEST_FILE // 10 ** 6} MB, so it is no vocabulary; "
                                    "name a vocab.txt of one token a line")
        # Not splitlines(): vocabularies hold U+2028 and its like as tokens.
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        raise VilgError(f"{path}: there is no such vocabulary; build one with tools/build_vocab.py, "
                        "or name the vocab.txt of a BERT or ERNIE tokenizer") from None
    except (OSError, UnicodeDecodeError) as error:
        raise VilgError(f"{path}: not a vocabulary of UTF-8 lines ({error})") from None


def _by_number(path: Path, lines: list[str]) -> list[str]:
    """The tokens of lines ``token<TAB>id`` (as ERNIE-ViL 2.0's) in the order of their ids, which leave none out."""
    tokens: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        match = _NUMBERED.fullmatch(line)
        if not match or int(match[2]) in tokens:
            fault = "gives an id again" if match else "is no token, tab and id like the first"
            raise VilgError(f"{path}: line {number} {fault}; mend it, or fetch the file again")
        tokens[int(match[2])] = match[1]
    if max(tokens) != len(tokens) - 1:
        raise VilgError(f"{path}: its {len(tokens)} lines have ids up to {max(tokens)}, so some ids have no token; "
                        "fetch the file again")
    return [tokens[index] for index in range(len(tokens))]
