"""Small files of each public format, made from scenes, and weights of an Inception that was never trained."""
import json

import numpy as np
import safetensors.numpy
from PIL import Image

from vilg.data.worlds import scenes
from vilg.models.inception import CLASSES, ConvolutionReLU, Inception


def scene(number):
    return scenes.sample_scene(number, "train")


def captions(number, count=5):
    rng = np.random.default_rng(number)
    made = scenes.captions(scene(number), rng)
    return [made[index % len(made)] for index in range(count)]


def save(path, number, size=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scenes.render(scene(number), size)).save(path)


def coco(root, count=12, split="val2014"):
    """``root/val2014`` with ``count`` images, and the file of Chinese prompts."""
    for number in range(1, count + 1):
        save(root / split / f"COCO_{split}_{number:012d}.jpg", number)
    prompts = root / "captions_zh.jsonl"
    prompts.write_text("".join(json.dumps(
        {"image_id": number, "caption": captions(number)[0][:12], "source": "scenes"}, ensure_ascii=False) + "\n"
        for number in range(1, count + 1)), encoding="utf-8")
    return prompts


def aic_icc(root, count=8):
    """AIC-ICC's validation as it is unpacked: whole sentences."""
    folder = root / "ai_challenger_caption_validation_20170910"
    records = []
    for number in range(count):
        name = f"{number:040x}.jpg"
        save(folder / "caption_validation_images_20170910" / name, number)
        records.append({"url": "http://example.com", "image_id": name, "caption": captions(number)})
    (folder / "caption_validation_annotations_20170910.json").write_text(
        json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return [record["image_id"].removesuffix(".jpg") for record in records]


def coco_cn(root, count=8):
    """COCO-CN's test: a list, captions, the same cut, and MS-COCO's images beside them."""
    folder = root / "coco-cn-version1805v1.1"
    folder.mkdir(parents=True)
    names = [f"COCO_{'train2014' if number % 3 == 0 else 'val2014'}_{number:012d}" for number in range(1, count + 1)]
    for number, name in enumerate(names, 1):
        save(root / name.split("_")[1] / f"{name}.jpg", number)
    (folder / "coco-cn_test.txt").write_text("".join(f"{name}\n" for name in names))
    for kind, own in (("human-written", ["COCO_val2014_000000000999", *names]), ("manually-translated", names)):
        lines = [(f"{name}#{index}", text) for number, name in enumerate(own)
                 for index, text in enumerate(captions(number, 2))]
        stem = f"imageid.{kind}-caption"
        (folder / f"{stem}.txt").write_text("".join(f"{name}\t{text}\n" for name, text in lines), encoding="utf-8")
        (folder / f"{stem}.bosonseg.txt").write_text(
            "".join(f"{name}\t{' '.join(text)}\n" for name, text in lines), encoding="utf-8")
    return names


def fmiqa(root, count=10):
    """``FM-IQA.json`` with ``val2014`` beside it."""
    coco(root, count)
    records = []
    for number in range(1, count + 1):
        question, answer = scenes.questions(scene(number), np.random.default_rng(number))[0]
        records.append({"question_id": 100 + number, "image_id": number, "Question": question, "Answer": answer})
    train = [{"question_id": 1, "image_id": 7, "Question": "有什么？", "Answer": "圆。"}]
    (root / "FM-IQA.json").write_text(json.dumps({"train": train, "val": records}, ensure_ascii=False),
                                      encoding="utf-8")
    return records


def inception_weights(path, variant="tf"):
    """The 472 tensors of a network by their public names, so large that activations stay near one."""
    rng, found = np.random.default_rng(0), {}
    for name, layer in Inception(variant).named_sublayers():
        if isinstance(layer, ConvolutionReLU):
            shape = layer.weight.shape
            found[f"{name}.conv.weight"] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype("float32")
            for part, (low, high) in {"weight": (0.7, 1.3), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2),
                                      "running_var": (0.5, 1.5)}.items():
                found[f"{name}.bn.{part}"] = rng.uniform(low, high, shape[0]).astype("float32")
    found["fc.weight"] = rng.normal(0, 0.02, [CLASSES[variant], 2048]).astype("float32")
    found["fc.bias"] = np.ones(CLASSES[variant], "float32")
    safetensors.numpy.save_file(found, str(path))
    return path
