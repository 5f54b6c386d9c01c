"""Raw pairs with planted faults: for every rule of a build cases that it has to find, among clean pairs that it has to
leave. What is planted is known by construction: no rule's own code decides what counts as a case of it.

Images are drawn scenes, every one another scene; captions are short descriptions of them by the scenes' grammar.
"""
import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from vilg.data.worlds import scenes

SIDE = 96
BLOCKED = "广告"
NOUNLESS = ("快跑", "慢慢走", "非常好", "真高兴", "跳一跳", "特别漂亮", "赶快来看", "越来越大", "又高又瘦", "快来买", "真好看",
            "十分便宜", "一起走吧", "快点来", "笑一笑", "更加明亮", "已经卖完")
"""Phrases that jieba knows to hold no noun; of others it takes words for names (美丽, 亮了), which are nouns."""
FOREIGN = ("照片 a red circle and a blue star", "图片 two green squares on the left", "圆形 with a yellow moon below",
           "星星 a big purple heart in the middle")
ELSEWHERE = ("立体风格的红苹果", "线描风格的飞机", "扁平风格的猫脸", "卡通风格的火车", "渐变风格的房子", "立体风格的咖啡")
"""Captions of the other world that the shipped dual encoder knows: no scene is like them."""
IMAGE_RULES = ("damaged", "pixels", "sides", "aspect", "special", "words", "noun", "script", "blocked", "frequency",
               "same_bytes", "same_pixels", "near_images")
COPIES = ("same_bytes", "same_pixels", "near_images")
MOST_OF_A_CAPTION = 5
"""Clean images that share one, well below the rule's ten."""
GROUP = 12
"""Images that share a caption of too many."""
LONGEST = 18
"""Characters of a clean caption, which are fewer than 15 words however they are cut."""


@dataclass
class Raw:
    """A raw pair and the rule that has to find it, None for a clean one."""

    content: bytes
    suffix: str
    caption: str
    rule: str | None = None
    extra: dict = field(default_factory=dict)


def pairs(count: int, seed: int, share: float = 0.015, similarity: bool = False) -> list[Raw]:
    """About ``count`` raw pairs, of which the share ``share`` is planted for each rule; copies come after what they are
    copies of."""
    rng = np.random.default_rng(seed)
    rules = IMAGE_RULES + (("similarity",) if similarity else ())
    each = max(GROUP, round(count * share))
    often, seen = _of_one_caption(rng, each)
    drawn = _drawn(rng, seen, {caption for _, caption in often})
    clean = [_clean(*next(drawn)) for _ in range(count - each * len(rules))]
    early, late = clean[:len(clean) // 2], clean[len(clean) // 2:]
    faults = [_fault(rule, number, *(often[number] if rule == "frequency" else next(drawn)), rng) for rule in rules
              if rule not in COPIES for number in range(len(often) if rule == "frequency" else each)]
    copied = rng.choice(len(early), each * len(COPIES), replace=False)
    for number, index in enumerate(copied):
        late.append(_copy(COPIES[number // each], number, early[index], rng))
    early, late = early + faults[::2], late + faults[1::2]
    return [group[place] for group in (early, late) for place in rng.permutation(len(group))]


def texts(count: int, seed: int, share: float = 0.05) -> list[Raw]:
    """Rows of text alone: sentences of words drawn at random, and near copies: a mark or a character more."""
    rng = np.random.default_rng(seed)
    words = ("苹果 桌子 城市 山水 天空 老师 学生 音乐 窗户 河流 花园 汽车 森林 海洋 图书 医院 市场 电影 照片 故事 厨房 牛奶 雨伞 火车 "
             "蛋糕 房子 小猫 小狗 月亮 太阳 星星 大树 草地 公园 街道 商店 手机 电脑 衣服 鞋子 红色 蓝色 绿色 高大 美丽 安静 明亮 古老").split()
    each = round(count * share)
    clean = ["".join(rng.choice(words, 11, replace=False)) for _ in range(count - each)]
    rows = [Raw(b"", "", text) for text in clean]
    endings = ("。", "！", "…", "，", "图", "、")
    for number, index in enumerate(rng.choice(len(clean), each, replace=False)):
        ending = endings[number % len(endings)]
        rows.append(Raw(b"", "", clean[index] + ending, "near_texts"))
    return rows


def write_tars(raw: list[Raw], folder: Path, a_tar: int = 500) -> dict[str, str | None]:
    """Raw pairs as tars like img2dataset's; returns what is planted by the name that a build knows each by."""
    folder.mkdir(parents=True, exist_ok=True)
    planted = {}
    for start in range(0, len(raw), a_tar):
        shard = f"{start // a_tar:05d}.tar"
        with tarfile.open(folder / shard, "w") as tar:
            for number, pair in enumerate(raw[start:start + a_tar]):
                key = f"{start + number:09d}"
                planted[f"{folder.name}/{shard}/{key}"] = pair.rule
                record = {"caption": pair.caption, "url": f"https://pictures.example/{key}", "key": key} | pair.extra
                for suffix, content in ((pair.suffix, pair.content), ("json", json.dumps(record).encode())):
                    if suffix:
                        item = tarfile.TarInfo(f"{key}.{suffix}")
                        item.size = len(content)
                        tar.addfile(item, io.BytesIO(content))
    return planted


def write_table(raw: list[Raw], path: Path) -> dict[str, str | None]:
    """Rows of text as a .jsonl; returns what is planted by the name that a build knows each by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planted, place = {}, 0
    with open(path, "wb") as file:
        for pair in raw:
            line = (json.dumps({"caption": pair.caption}, ensure_ascii=False) + "\n").encode()
            planted[f"{path.name}@{place}"] = pair.rule
            place += file.write(line)
    return planted


def _scenes(rng: np.random.Generator) -> Iterator[tuple[Any, str, list[str]]]:
    """Scenes, what tells each apart, and its captions that are short."""
    first = int(rng.integers(1 << 30))
    for seed in range(first, first + (1 << 22)):
        scene = scenes.sample_scene(seed, "train")
        texts = [text for text in scenes.captions(scene, np.random.default_rng(seed)) if len(text) <= LONGEST]
        yield scene, str(sorted(map(str, scene.facts()))), texts


def _of_one_caption(rng: np.random.Generator, count: int) -> tuple[list[tuple[np.ndarray, str]], set[str]]:
    """Up to ``count`` images, in groups of twelve scenes that share a caption, true of each; and what was drawn."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    found: list[tuple[np.ndarray, str]] = []
    seen: set[str] = set()
    for scene, facts, texts in _scenes(rng):
        text = min(texts, key=len, default="")  # the shortest say least, so that many scenes share one
        if not text or facts in seen or len(groups[text]) == GROUP:
            continue
        groups[text][facts] = scene
        if len(groups[text]) == GROUP:
            found += [(scenes.render(one, SIDE), text) for one in groups[text].values()]
            seen |= groups[text].keys()
        if len(found) + GROUP > count:
            return found, seen
    raise RuntimeError(f"no {count} scenes share captions")


def _drawn(rng: np.random.Generator, seen: set[str], never: set[str]) -> Iterator[tuple[np.ndarray, str]]:
    """Images of scenes, none that was ``seen`` and none twice, each with a caption that few of them have and that is
    none of ``never``."""
    captions: Counter[str] = Counter()
    for scene, facts, texts in _scenes(rng):
        text = next((text for text in texts if captions[text] < MOST_OF_A_CAPTION and text not in never), None)
        if text is None or facts in seen:
            continue
        seen.add(facts)
        captions[text] += 1
        yield scenes.render(scene, SIDE), text


def _clean(image: np.ndarray, caption: str) -> Raw:
    return Raw(_encoded(Image.fromarray(image)), "jpg", caption)


def _encoded(image: Image.Image, kind: str = "jpeg", quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": quality} if kind == "jpeg" else {}))
    return buffer.getvalue()


def _fault(rule: str, number: int, image: np.ndarray, caption: str, rng: np.random.Generator) -> Raw:
    pair = _clean(image, caption)
    pair.rule = rule
    if rule == "damaged":
        cut = pair.content[:len(pair.content) // 2]
        pair.content, pair.caption = ((cut, caption), (rng.bytes(900), caption), (pair.content, "  "),
                                      (b"", caption))[number % 4]
    elif rule == "pixels":
        pair.content, pair.suffix = _huge(), "png"
    elif rule == "sides":
        pair.content = _encoded(Image.fromarray(image).resize((40 + number % 20, 63)))
    elif rule == "aspect":
        pair.content = _encoded(Image.fromarray(image).resize((310 + number, SIDE)))
    elif rule == "words":
        pair.caption = "，".join([caption] * (1 + -(-60 // len(caption))))
    elif rule == "special":
        pair.caption = caption + ("★", "😀", "#热门", "<br>", "@店主", "\x07")[number % 6]
    elif rule == "blocked":
        pair.caption = f"{BLOCKED}，{caption}"
    elif rule != "frequency":
        captions = {"noun": NOUNLESS, "script": FOREIGN, "similarity": ELSEWHERE}[rule]
        pair.caption = captions[number % len(captions)]
        if rule == "noun":
            pair.caption += "，" + NOUNLESS[number // len(captions) % len(captions)]
    return pair


_HUGE: list[bytes] = []


def _huge() -> bytes:
    """A PNG of 56 million pixels in a few kilobytes."""
    if not _HUGE:
        _HUGE.append(_encoded(Image.new("1", (7500, 7500)), "png"))
    return _HUGE[0]


def _copy(rule: str, number: int, of: Raw, rng: np.random.Generator) -> Raw:
    if rule == "same_bytes":
        return Raw(of.content, of.suffix, of.caption, rule)
    image = Image.open(io.BytesIO(of.content))
    if rule == "same_pixels":
        return Raw(_encoded(image, "png"), "png", of.caption, rule)
    ways = (lambda: _encoded(image, quality=60), lambda: _encoded(image.resize((72, 72), Image.Resampling.BICUBIC)),
            lambda: _encoded(image.resize((160, 160), Image.Resampling.BICUBIC), quality=75),
            lambda: _encoded(ImageEnhance.Brightness(image).enhance(float(rng.uniform(1.02, 1.06)))))
    return Raw(ways[number % len(ways)](), "jpg", of.caption, rule)
