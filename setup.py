"""Installation; the pins are the versions vilg is tested with, and the bounds name what is known to break."""
from pathlib import Path

from setuptools import find_namespace_packages, setup

CORE = [
    "numpy>=1.26,<3",
    "pillow>=10",
    "pyyaml>=6",
    "visualdl==2.5.3",
    "protobuf>=3.20.3,<7",  # 7 breaks VisualDL's records of boolean settings
    "tokenizers>=0.21,<0.24",
    "safetensors>=0.4",
    "jieba>=0.42.1",
    "pydantic>=2.5,<3",
    "tqdm>=4.66",
]
# Later aistudio-sdk and pyarrow releases break paddlenlp without pip noticing; paddlenlp needs numpy below 2.
NLP = ["paddlenlp==3.0.0b4", "aistudio-sdk==0.2.6", "pyarrow==21.0.0"]
EXTRAS = {
    "cpu": ["paddlepaddle==3.3.1"],
    # PyPI's ends at 2.6.2, so there pip refuses; README.md has the line with Paddle's own index.
    "gpu": ["paddlepaddle-gpu>=3.3,<3.4"],
    "nlp": NLP,
    "hub": [*NLP, "paddlehub==2.4.0", "protobuf==3.20.3"],
    "eval": ["pycocoevalcap==1.2", "krippendorff>=0.6"],
    "data": ["webdataset==1.0.2", "daft==0.7.26"],  # the engine of tools/build_data.py: 309 MB, most of it pyarrow
    "ray": ["daft[ray]==0.7.26", "ray[data]==2.59.0"],  # the same on a cluster, 240 MB more; daft wants ray below 2.60
    "search": ["faiss-cpu>=1.8"],  # another backend of exact search; numpy finds the same
    "styles": ["resvg_py==0.5.0"],  # draws the SVGs of tools/prepare_styles.py
    "jit": ["numba>=0.68,<0.69"],  # compiled loops: 208 MB; docs/cpu.md says what they gain
    "demo": ["gradio==6.17.3", "matplotlib>=3.8"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.9", "prometheus-client>=0.20"],
    # Tests hold vilg against these. Where pip finds a CPU wheel of this torch, it takes that; torchvision belongs to it.
    "oracle": ["torch==2.13.0", "torchvision==0.28.0", "torch-fidelity==0.4.0", "pytorch-fid==0.3.0", "scipy>=1.11"],
    "dev": ["pytest>=8", "ruff>=0.6", "selenium>=4.20", "openai>=1.60"],
}

setup(
    name="vilg",
    version="1.1.0",
    description="Draw pictures from Chinese text, describe pictures and answer about them, on PaddlePaddle",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if Path(__file__).with_name("README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["vilg", "vilg.*"]),
    package_data={"vilg.evaluation.human": ["page.html"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
