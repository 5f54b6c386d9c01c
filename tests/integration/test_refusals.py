"""Two real ranks of tools/train.py that cannot start: every rank ends, and the last line names the key and the fix."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vilg.data.packing import Packing, write_shards
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource
from vilg.engine.safety.supervisor import EXIT_REFUSED, rank_environments

ROOT = Path(__file__).parents[2]
SECONDS = 180


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, ScenesSource(ScenesConfig(count=16, size=32, captions=1)), Packing("png"), 8)
    return folder


@pytest.fixture
def config(tmp_path, shards):
    """A run of 2 steps on 2 ranks that would start."""
    values = {"name": "refused", "output": str(tmp_path / "run"),
              "task": {"kind": "image_tokenizer",
                       "tokenizer": {"kind": "vqvae", "image_size": 32, "patch": 4, "channels": 16, "multipliers": [1],
                                     "blocks": 1, "decoder_blocks": 1, "attention_resolutions": [], "norm_groups": 4,
                                     "z_channels": 8, "code_dim": 8,
                                     "quantizer": {"kind": "ema", "codebook_size": 32}},
                       "loss": {"kind": "pixels", "perceptual": "none"}},
              "data": {"sources": [{"kind": "shards", "path": str(shards)}]},
              "train": {"steps": 2, "batch_size": 4, "preview_every": 0, "checkpoint_every": 0, "export": False},
              "distributed": {"level": "dp"}, "runtime": {"threads": 1}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def supervised(config, *arguments):
    """Status and last line of a job under the supervisor."""
    command = [sys.executable, "tools/train.py", "--config", str(config), "--ranks", "2", "--restarts", "2", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert "Traceback" not in done.stderr and "restart 1" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


def unsupervised(config, *arguments):
    """Status and last line of every rank, started as on several nodes; ``arguments`` are each rank's own."""
    command = [sys.executable, "tools/train.py", "--config", str(config)]
    ranks = [subprocess.Popen(command + own, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
             for own, environment in zip(arguments, rank_environments(2))]
    texts = [rank.communicate(timeout=SECONDS)[1] for rank in ranks]
    return [(rank.returncode, text.strip().splitlines()[-1]) for rank, text in zip(ranks, texts)]


@pytest.mark.parametrize("key, sentence", [
    ("distributed.level=zero", "distributed.level: input should be 'none', 'dp', 'os', 'os_g' or 'p_g_os', got 'zero'"),
    ("train.accumulate_steps=3", "train.batch_size: 4 does not divide over 2 ranks × 3 accumulate_steps; use a"),
    ("data.loader.workers=2", "data.sources: 2 shards are too few for 4 readers (ranks × data.loader.workers); write"),
    ("output=/proc/nowhere/run", "output: /proc/nowhere/run/logs cannot be written"),
])
def test_a_start_that_cannot_be_is_refused_once(config, key, sentence):
    status, last = supervised(config, "--set", key)
    assert status == EXIT_REFUSED
    assert last.startswith("error: ") and sentence in last


def test_a_checkpoint_of_another_model_size_is_refused(config):
    assert supervised(config)[0] == 0
    status, last = supervised(config, "--resume", "auto", "--set", "task.tokenizer.channels=32")
    assert status == EXIT_REFUSED
    assert "made by another model size or vocabulary: model/" in last and "or a new output directory" in last
    status, last = supervised(config)
    assert status == EXIT_REFUSED and "already holds a run" in last and "--resume auto" in last


def test_ranks_with_different_configs_all_end(config):
    sentence = "optim.lr: is 0.001 on rank 0 and 0.002 on rank 1; start every rank with the same config"
    for status, last in unsupervised(config, ["--set", "optim.lr=0.001"], ["--set", "optim.lr=0.002"]):
        assert status == EXIT_REFUSED and sentence in last


def test_what_one_rank_lacks_ends_them_all(config, shards, tmp_path):
    for rank in range(2):
        (tmp_path / f"node-{rank}").mkdir()
    (tmp_path / "node-0" / "data").symlink_to(shards)
    text = config.read_text(encoding="utf-8").replace(str(shards), "data")
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(config)]
    ranks = [subprocess.Popen(command, cwd=tmp_path / f"node-{rank}", env=os.environ | environment, text=True,
                              stderr=subprocess.PIPE) for rank, environment in enumerate(rank_environments(2))]
    for rank in ranks:
        last = rank.communicate(timeout=SECONDS)[1].strip().splitlines()[-1]
        assert rank.returncode == EXIT_REFUSED and "data: names no tar shard" in last
