"""What a scene can be made of, and the Chinese words for it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 45),
    "yellow": (250, 210, 40),
    "green": (45, 165, 70),
    "blue": (45, 85, 215),
    "purple": (145, 60, 190),
    "cyan": (30, 190, 205),
    "black": (35, 35, 40),
    "pink": (245, 110, 175),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
# Only wide scenes show these, and only training sees wide scenes: the more others a colour or a shape goes with, the
# less it is learned as part of one thing.
MORE_COLOURS: dict[str, tuple[int, int, int]] = {
    "orange": (240, 125, 30), "brown": (125, 75, 40), "grey": (130, 130, 135), "lime": (165, 215, 50),
    "gold": (190, 150, 60),
}
MORE_SHAPES = ("rectangle", "semicircle", "hexagon", "trapezoid", "parallelogram", "crescent", "arrow", "drop",
               "flower", "cloud", "hourglass", "pentagon", "sector", "leaf", "fish", "house", "mushroom", "stairs",
               "saltire", "crown", "bow tie", "flag", "bottle")
SIZES: dict[str, float] = {"small": 15.0, "large": 23.0}  # extent in pixels of a 64-pixel image
SIDES = ("left", "right", "above", "below")

# The first word of each list is the one that answers use; every word is understood.
COLOUR_WORDS = {
    "red": ("红色",), "yellow": ("黄色",), "green": ("绿色",), "blue": ("蓝色",),
    "purple": ("紫色",), "cyan": ("青色",), "black": ("黑色",), "pink": ("粉色",),
    "orange": ("橙色",), "brown": ("棕色",), "grey": ("灰色",), "lime": ("草绿色",), "gold": ("金色",),
}
SHAPE_WORDS = {
    "circle": ("圆形", "圆"), "square": ("方块", "正方形"), "triangle": ("三角形", "三角"), "diamond": ("菱形",),
    "star": ("星星", "五角星"), "cross": ("十字", "十字形"), "ring": ("圆环", "环形"), "heart": ("心形", "爱心"),
    "rectangle": ("长方形",), "semicircle": ("半圆",), "hexagon": ("六边形",), "trapezoid": ("梯形",),
    "parallelogram": ("平行四边形",), "crescent": ("月牙",), "arrow": ("箭头",), "drop": ("水滴",), "flower": ("花朵",),
    "cloud": ("云朵",), "hourglass": ("沙漏",), "pentagon": ("五边形",), "sector": ("扇形",), "leaf": ("叶子",),
    "fish": ("鱼形",), "house": ("房子",), "mushroom": ("蘑菇",), "stairs": ("楼梯",), "saltire": ("叉号",),
    "crown": ("皇冠",), "bow tie": ("蝴蝶结",), "flag": ("旗子",), "bottle": ("瓶子",),
}
ANY_SHAPE = "图形"
SIZE_WORDS = {"small": ("小",), "large": ("大",)}
SIDE_WORDS = {
    "left": ("左边", "左侧", "左面"), "right": ("右边", "右侧", "右面"),
    "above": ("上面", "上方", "上边"), "below": ("下面", "下方", "下边"),
}
# Cells are (row, column) of a 3×3 layout. A side's word without a second object names the middle cell of that side.
CELL_WORDS = {
    (0, 0): ("左上角", "左上方"), (0, 1): ("上方", "上边", "上面"), (0, 2): ("右上角", "右上方"),
    (1, 0): ("左边", "左侧", "左面"), (1, 1): ("中间", "中央", "正中间"), (1, 2): ("右边", "右侧", "右面"),
    (2, 0): ("左下角", "左下方"), (2, 1): ("下方", "下边", "下面"), (2, 2): ("右下角", "右下方"),
}
COUNT_WORDS = {1: "一", 2: "两", 3: "三"}
MEASURES = ("个", "颗")  # 颗 is said of stars and hearts
YES = ("是", "有", "对", "在")
NO = ("不是", "没有", "不对", "不在", "否", "不")
