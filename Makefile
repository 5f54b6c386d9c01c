# make demo          draw, describe and answer with the shipped model; writes demo/
# make test          the suite, but for the tests marked "extras"; make test TESTS=tests/nn runs a part
# make test-extras   the tests marked "extras", which hold vilg against PaddleHub, PaddleNLP and PyTorch
# make lint          style
# make server        what tools/serve.py and tools/web.py need, and no more; the Dockerfile's step
# make demo DEVICE=gpu, make test-versions: see devices.mk
# make clean         removes what the others made
# Python's packages go into .venv, those that do not agree with them (3 GB) into .venv-extras; each is made, mended or
# brought up to date when it is wanted. On Debian and as root, what the system lacks is installed as well; elsewhere a
# sentence names it. PyPI's torch for Linux needs gigabytes of CUDA: let PIP_FIND_LINKS name a folder or page with
# PyTorch's CPU wheel to spare them.
PYTHON ?= python3
VENV ?= .venv
EXTRAS_VENV ?= .venv-extras
TESTS ?=
RUN = $(VENV)/bin/python
EXTRAS_RUN = $(EXTRAS_VENV)/bin/python
ENVIRONMENT = @PYTHON="$(PYTHON)" sh .ci/environment
.DEFAULT_GOAL = demo
include devices.mk

# $(call debian,packages,what follows from their absence)
debian = @dpkg -s $(1) >/dev/null 2>&1 || { \
	test "$$(id -u)" = 0 && { apt-get update -qq; DEBIAN_FRONTEND=noninteractive \
	apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends $(1); }; } >/dev/null 2>&1 || \
	echo "$(1): not installed; $(2)"

.NOTPARALLEL:
.PHONY: demo test test-extras lint clean cpu server dev extras font emoji java browser

demo: $(DEVICE) font
	$(RUN) tools/infer.py demo --output demo --beside two_level_tiny

test: dev emoji java browser
	$(if $(TESTS),,VILG_ONEDNN=0 $(RUN) -m pytest -m "not extras" tests/nn)
	$(RUN) -m pytest -m "not extras" $(TESTS)

test-extras: extras
	$(EXTRAS_RUN) -m pytest -m extras $(TESTS)

lint: dev
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) $(EXTRAS_VENV) .venv-gpu .venv-paddle-* demo build *.egg-info

cpu:
	$(ENVIRONMENT) $(VENV) cpu paddle

server:
	$(ENVIRONMENT) $(VENV) cpu,demo,serve paddle,gradio,fastapi

dev:
	$(ENVIRONMENT) $(VENV) cpu,jit,eval,data,ray,search,styles,demo,serve,dev paddle,numba,gradio,resvg_py,faiss,daft

extras:
	$(ENVIRONMENT) $(EXTRAS_VENV) cpu,hub,styles,oracle,dev paddle,paddlehub,paddlenlp,torch

font:
	$(call debian,fonts-wqy-microhei,without a Chinese font the contact sheet shows boxes for its prompts)

emoji:
	$(call debian,fonts-noto-color-emoji unicode-cldr-core,the tests that read the emoji set are skipped)

java:
	$(call debian,default-jre-headless,the tests that run the captions' original metrics in Java are skipped)

browser:
	$(call debian,chromium chromium-driver,the tests in a real browser are skipped)
