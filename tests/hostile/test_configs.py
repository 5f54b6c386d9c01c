"""Configs as nobody should write them: every generated mutation loads as a run or is refused in one short sentence."""
import random
import time

import pytest
import yaml

from vilg import config
from vilg.errors import ConfigError
from vilg.run import build

MUTATIONS, SECONDS = 400, 2.0
BASE = {
    "name": "x", "seed": 1, "output": "runs/{name}",
    "task": {"kind": "bidirectional", "image_tokenizer": "a", "vocabulary": "b", "question_share": 0.4,
             "model": {"layers": 4, "width": 64, "heads": 8, "vocab_size": 2029, "codebook_size": 1024,
                       "text_length": 28, "rows": 8, "columns": 8, "sparse": True}},
    "data": {"sources": [{"kind": "scenes", "count": 10}, {"kind": "folder", "path": "c", "repeat": 2}]},
    "optim": {"lr": 1e-3, "beta2": 0.98, "weight_decay": 0.01, "warmup_steps": 5, "schedule": "cosine"},
    "train": {"steps": 10, "batch_size": 2, "ema_decay": 0.9, "log_every": 1, "checkpoint_every": 5},
    "distributed": {"level": "none"}, "runtime": {"cpu_math": "fp32"}, "sampling": {"temperature": 0.5},
}
VALUES = [None, True, "", "x" * 100_000, "\ud800", "\0", -1, 0, 10**26, 2**63, 1e308, float("inf"),
          float("nan"), 1e-400,
          [], {}, [[]] * 50, {"kind": "nothing"}, {"kind": ["a"]}, {1: 2}, "1:30", "{name.foo}", "{name:>5000000000}",
          "../../..", "1e5", -0.0, 10**12, "2026-02-30", {"a": {"b": {"c": 1}}}, "☃", "%s%n", "~", "NULL"]


def places(node, path=()):
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


def mutated(rng):
    values = yaml.safe_load(yaml.safe_dump(BASE))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        path = rng.choice([path for path in places(values) if path])
        node = values
        for key in path[:-1]:
            node = node[key]
        act = rng.choice(["replace", "replace", "drop", "unknown", "nest"])
        if act == "replace":
            node[path[-1]] = rng.choice(VALUES)
        elif act == "drop":
            node.pop(path[-1])
        elif act == "unknown" and isinstance(node, dict):
            node.update({f"{rng.choice(['', 'x', '__class__', 'kind '])}{n}": 1 for n in range(rng.choice([1, 50]))})
        elif isinstance(node, dict):
            deep = 1
            for _ in range(rng.choice([5, 60])):
                deep = {"a": deep}
            node[path[-1]] = deep
    return values


def scrambled(rng, text):
    raw = bytearray(text.encode())
    for _ in range(rng.choice([1, 3, 20])):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


@pytest.mark.parametrize("kind", ["values", "bytes"])
def test_mutated_configs_load_or_are_refused_in_a_sentence(kind, tmp_path, capsys):
    rng, loaded, refused = random.Random(kind), 0, 0
    for number in range(MUTATIONS):
        text = yaml.safe_dump(mutated(rng), allow_unicode=False, sort_keys=False) if kind == "values" else ""
        content = text.encode() if kind == "values" else scrambled(rng, yaml.safe_dump(BASE, sort_keys=False))
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(content)
        start = time.monotonic()
        try:
            run = build.load_run(path)
            config.to_yaml(run).encode("utf-8")
            assert run.output_directory.parts
            loaded += 1
        except ConfigError as error:
            message = str(error)
            message.encode("utf-8")
            assert "\n" not in message and len(message) < 3000, (content[:300], message[:300])
            refused += 1
        assert time.monotonic() - start < SECONDS
    with capsys.disabled():
        print(f"\nconfigs, {kind}: {loaded} loaded, {refused} refused, 0 tracebacks")
    assert refused > MUTATIONS // 4
