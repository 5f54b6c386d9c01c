"""Captions made by rule, with repeated characters, digits and near-synonyms, for tests that need many."""
import numpy as np

WHO = ["一个穿着红色T恤的男人", "两个戴着帽子的小女孩", "一只黑白相间的小猫", "一位老人和一个孩子", "3个人", "一群学生",
       "一个男人和一个女人", "一条棕色的大狗", "一个头戴帽子身穿白色衬衫的人", "12只小鸟", "一名运动员", "一个婴儿"]
WHERE = ["在宽阔的马路上", "在绿油油的草地上", "在房间里的桌子旁边", "在人来人往的街道上", "在大树的树荫下", "在海边的沙滩上",
         "在干净的厨房里", "在运动场上", "在红色的沙发上", "在舞台上", "在雪地里的山坡上", "在一个大大的窗户前"]
WHAT = ["骑着一辆红色的自行车", "拿着一把打开的伞走路", "开心地玩着一个球", "看着一台电视机", "吃着一个红红的苹果",
        "跑来跑去", "坐着看书", "打网球", "弹着吉他唱着歌", "慢慢地走着", "望着前方的高山", "高高地跳起来"]
ADDED = ["，", "，旁边有很多人", "，天上有一朵朵白云", "", "", "，他的身后是一个2.5米高的门", "，很开心"]


def sentence(generator: np.random.Generator, parts: list[int]) -> str:
    """One caption of the four parts, in either order of the middle ones, sometimes with one left out."""
    pieces = [WHO[parts[0]], WHERE[parts[1]], WHAT[parts[2]]]
    if generator.random() < 0.3:
        pieces = [pieces[1], pieces[0], pieces[2]]
    if generator.random() < 0.15:
        pieces.pop(int(generator.integers(3)))
    return "".join(pieces) + ADDED[int(generator.integers(len(ADDED)))].rstrip("，")


def made_captions(count: int, seed: int = 0, references: int = 5) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References and one hypothesis for each of ``count`` images; some hypotheses are good, some are copies."""
    generator = np.random.default_rng(seed)
    given, said = {}, {}
    for number in range(count):
        parts = [int(generator.integers(12)) for _ in range(3)]
        texts = []
        for _ in range(references + 1):
            own = [int(generator.integers(12)) if generator.random() < 0.25 else part for part in parts]
            texts.append(sentence(generator, own))
        said[f"image{number}.jpg"] = texts[0] if generator.random() < 0.95 else texts[1]
        given[f"image{number}.jpg"] = texts[1:]
    return given, said
