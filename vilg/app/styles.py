"""The styles and resolutions that ERNIE-ViLG's hosted service offered, and what they are to a model on this machine."""
import logging
from typing import Any

logger = logging.getLogger(__name__)
# Styles are a matter of the prompt alone; the first leaves it as it is. Those of versions 1.0 and 1.1 of the service.
STYLES = ("探索无限", "油画", "水彩", "粉笔画", "卡通", "儿童画", "蜡笔画", "古风", "二次元", "浮世绘", "蒸汽波艺术",
          "low poly", "像素风格", "概念艺术", "未来主义", "赛博朋克", "写实风格", "洛丽塔风格", "巴洛克风格", "超现实主义")
RESOLUTIONS = ("1024*1024", "1024*1536", "1536*1024")


def styled(pipeline: Any, prompt: str, style: str) -> str:
    """The prompt with the words of a style, one of :data:`STYLES`, behind it, if the pipeline's model has room for
    both; a warning says where it has not."""
    if style == STYLES[0] or not isinstance(prompt, str) or not prompt.strip():
        return prompt  # what is no text, the pipeline refuses by name
    told = f"{prompt}，{style.removesuffix('风格')}风格"
    words, room = pipeline.text_tokenizer, pipeline.model.config.text_length
    cut, surplus = words.encode_batch([prompt, told], room).cut.tolist()
    if cut:
        return prompt  # as what is too long without the style's words
    if surplus:
        logger.warning("the prompt %r fits the %d tokens that this model reads, and with the words of style %s it "
                       "is %d too long: drawn without the style; shorten the prompt to have it", prompt, room - 2,
                       style, surplus)
        return prompt
    return told
