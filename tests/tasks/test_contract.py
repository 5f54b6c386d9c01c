"""What every task promises the loader and the trainer."""
from dataclasses import replace

import numpy as np
import pytest

from vilg import config
from vilg.data.config import build_stream
from vilg.run import build
from vilg.yaml_files import read_yaml

TASKS = {
    "bidirectional": {"question_share": 1.0},
    "end_to_end": {"loss": {"kind": "pixels", "perceptual": "none"}},
    "image_tokenizer": {"tokenizer": {"kind": "vqvae", "image_size": 16, "channels": 8, "multipliers": [1, 2],
                                      "blocks": 1, "decoder_blocks": 1, "attention_resolutions": [], "norm_groups": 4,
                                      "z_channels": 8, "code_dim": 8, "quantizer": {"codebook_size": 16}},
                        "loss": {"kind": "pixels", "perceptual": "none"}},
    "contrastive": {"model": {"image": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "heads": 1},
                              "text": {"vocab_size": 400, "positions": 16, "layers": 1, "width": 16, "heads": 1}},
                    "text_length": 16, "loss": {"image_image": 0.0}},
    "scene_features": {"network": {"image_size": 32, "channels": 8, "dim": 16}},
}


@pytest.fixture(params=TASKS)
def run(request, released_model, tmp_path):
    values = {"kind": request.param, **TASKS[request.param]}
    if request.param in ("bidirectional", "end_to_end"):
        model = read_yaml(released_model / "model.yaml")["model"]
        values |= {"model": model, "image_tokenizer": str(released_model / "image_tokenizer"),
                   "vocabulary": str(released_model)}
    if request.param == "contrastive":
        values |= {"vocabulary": str(released_model)}
    return config.from_dict(build.RunConfig, {
        "name": "t", "output": str(tmp_path), "task": values, "train": {"batch_size": 4},
        "data": {"sources": [{"kind": "scenes", "count": 9, "size": 48, "kinds": 2, "wide": True}]}})


def test_a_batch_follows_from_samples_and_seeds_alone(run):
    task = build.build_task(run)
    stream = build_stream(run.data, None, task.least_side, task.reads_text)
    stream.begin(0, 1)
    samples = [stream.sample(position, 0) for position in range(5)]
    assert all(sample.image.shape == (48, 48, 3) for sample in samples), "the source crops what the task should see"
    first, again = (task.collate([task.view(sample, seed) for seed, sample in enumerate(samples)], list(range(5)))
                    for _ in range(2))
    assert type(first) is type(again) and first.image.shape == (5, 3, task.least_side, task.least_side)
    for name, value in first.parts().items():
        assert len(value) == 5 and np.array_equal(value, again.parts()[name]), name
    other = [replace(sample, image=255 - sample.image) for sample in samples]
    changed = task.collate([task.view(sample, seed) for seed, sample in enumerate(other)], list(range(5)))
    assert [name for name, value in first.parts().items() if not np.array_equal(value, changed.parts()[name])] == [
        "image"]
    assert task.tokens(first) == 5 * task.tokens(first.map(lambda value: value[:1]))
