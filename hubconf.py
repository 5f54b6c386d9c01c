"""Entries for ``paddle.hub``: list, help and load this repository's models without installing it.

>>> import paddle
>>> paddle.hub.list(".", source="local")
>>> model = paddle.hub.load(".", "ernie_vilg_tiny", source="local")
>>> model.text_to_image("一个红色的圆形")[0][0].save("circle.png")
"""
import os
import sys

# paddle.hub lists every name here that can be called, so that no class is imported.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

dependencies = ["paddle", "numpy", "PIL", "pydantic", "safetensors", "tokenizers", "tqdm", "yaml"]


def ernie_vilg_tiny(device=None, cpu_math=None):
    """The shipped model as a pipeline: text_to_image, image_to_text, answer, rank. ``device``: "cpu", "gpu:0" …"""
    return ernie_vilg("ernie_vilg_tiny", device=device, cpu_math=cpu_math)


def ernie_vilg(name, device=None, cpu_math=None):
    """Any released model, by its name in model_zoo/ or its folder, as a pipeline."""
    from vilg.app import pipeline

    return pipeline.load(name, device=device, cpu_math=cpu_math)


def text_to_image(texts, num_images=1, seed=0, name="ernie_vilg_tiny", **settings):
    """Draw at once: a text or a list of texts → for each a list of PIL pictures. Settings as in the pipeline."""
    return ernie_vilg(name).text_to_image(texts, num_images=num_images, seed=seed, **settings)


def image_to_text(images, name="ernie_vilg_tiny"):
    """Describe at once: a picture (path, PIL picture or uint8 array) or a list of them → a list of sentences."""
    return ernie_vilg(name).image_to_text(images)


def answer(images, questions, name="ernie_vilg_tiny"):
    """Answer at once: pictures and questions, paired, or one of either for all → a list of answers."""
    return ernie_vilg(name).answer(images, questions)
