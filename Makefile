# make demo   draw, describe and answer with the shipped model; writes demo/
# make test   the whole suite
# make lint   style
# make demo DEVICE=gpu, make test-versions: devices.mk
# Everything is installed into .venv, which is made when it is not there. On Debian and as root, fonts and data that
# apt has are installed as well; elsewhere they are done without.
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip install --quiet --disable-pip-version-check
.DEFAULT_GOAL = demo
include devices.mk

# $(call debian,packages,what follows from their absence)
debian = @dpkg -s $(1) >/dev/null 2>&1 || { \
	test "$$(id -u)" = 0 && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1); } >/dev/null 2>&1 || \
	echo "$(1): not installed; $(2)"

.PHONY: demo test lint clean font emoji

demo: $(VENV)/$(DEVICE).installed font
	$(RUN) tools/infer.py demo --output demo

test: $(VENV)/dev.installed emoji
	VILG_ONEDNN=0 $(RUN) -m pytest tests/nn
	$(RUN) -m pytest

lint: $(VENV)/dev.installed
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) .venv-gpu .venv-paddle-* demo build *.egg-info

# Debian's Python comes without ensurepip unless python3-venv is installed; then pip is brought in from outside.
$(RUN):
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install --quiet pip; }

$(VENV)/cpu.installed: setup.py | $(RUN)
	$(PIP) -e '.[cpu]'
	touch $@

$(VENV)/dev.installed: setup.py | $(RUN)
	$(PIP) -e '.[cpu,jit,eval,data,dev]'
	$(RUN) -m pip check
	touch $@

font:
	$(call debian,fonts-wqy-microhei,without a Chinese font the contact sheet shows boxes for its prompts)

emoji:
	$(call debian,fonts-noto-color-emoji unicode-cldr-core,the tests that read the emoji set are skipped)
