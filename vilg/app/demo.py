"""The demo: a contact sheet of pictures drawn from text, sentences written about pictures, and answers about them."""
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilg.app.image_files import save_whole, write_pictures
from vilg.app.sheet import table
from vilg.data.worlds import scenes

SCENES = ("一个红色的圆形", "左边是蓝色的方块，右边是黄色的星星", "三个绿色的三角形", "紫色的心形在青色的圆环上面")
EMOJI = ("红苹果", "猫脸", "火箭", "西瓜")
PROMPTS = SCENES + EMOJI
# An emoji is one certain picture, which the likeliest codes draw best; a scene leaves much open and is sampled freely.
CERTAIN = {"temperature": 0.3, "guidance": 1.0}


def write(model: Any, output: str | Path, seed: int = 0, beside: Any = None) -> list[dict[str, Any]]:
    """Draw :data:`PROMPTS`, describe the drawings, answer questions about held-out scenes; write ``demo.png``.

    A model with a reconstructor draws each prompt by both paths, the same samples one below the other. A model
    ``beside`` it draws and describes the scenes too, in rows of their own.

    Returns a record for every picture, caption and answer. Seeds count modulo 2**64, as those of pictures do.
    """
    output = Path(output)
    drawn = _draw(model, seed, "two_stage")
    records = write_pictures(list(PROMPTS), drawn, output)
    captions = model.image_to_text([np.asarray(row[0]) for row in drawn])
    rows = [(f"画：{prompt}\n看图说话：{caption}", row) for prompt, row, caption in zip(PROMPTS, drawn, captions)]
    if model.reconstructor is not None:
        again = _draw(model, seed, "end_to_end")
        records += write_pictures(list(PROMPTS), again, output)
        rows = [row for prompt, above, below in zip(PROMPTS, rows, again)
                for row in (above, (f"画（端到端）：{prompt}", below))]
    if beside is not None:
        others = beside.text_to_image(list(SCENES), num_images=4, best_of=8, seed=seed, progress=True)
        records += write_pictures(list(SCENES), others, output)
        said = beside.image_to_text([np.asarray(row[0]) for row in others])
        rows += [(f"画（{beside.name}）：{prompt}\n看图说话：{caption}", row)
                 for prompt, caption, row in zip(SCENES, said, others)]
    size, seed = drawn[0][0].height, seed % 2 ** 64
    rng = np.random.default_rng(seed)
    for index in range(4):
        scene = scenes.sample_scene(10_000 + seed * 4 + index, "test")
        picture = scenes.render(scene, size)
        asked = [scenes.questions(scene, rng)[pick] for pick in (0, -1)]
        answers = model.answer([picture], [question for question, _ in asked])
        caption = model.image_to_text([picture])[0]
        lines = [f"问：{question}\n答：{answer}" for (question, _), answer in zip(asked, answers)]
        rows.append((f"看图说话：{caption}\n" + "\n".join(lines), [Image.fromarray(picture)]))
        records += [{"scene": index, "question": question, "answer": answer, "truth": truth}
                    for (question, truth), answer in zip(asked, answers)]
    save_whole(table(rows), output / "demo.png")
    records.append({"contact_sheet": str(output / "demo.png")})
    return records


def _draw(model: Any, seed: int, path: str) -> list[list[Image.Image]]:
    settings = {"num_images": 4, "best_of": 8, "seed": seed, "path": path, "progress": True}
    return model.text_to_image(list(SCENES), **settings) + model.text_to_image(list(EMOJI), **settings, **CERTAIN)
