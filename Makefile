# make demo   draw, describe and answer with the shipped model; writes demo/
# make test   the whole suite
# make lint   style
# Everything is installed into .venv, which is made when it is not there.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Pictures and Chinese names of the emoji set, which some tests prepare and read.
DEBIAN_PACKAGES = fonts-noto-color-emoji unicode-cldr-core

.PHONY: demo test lint debian clean

demo: $(VENV)/cpu.installed
	$(RUN) tools/infer.py demo --output demo

test: $(VENV)/dev.installed debian
	VILG_ONEDNN=0 $(RUN) -m pytest tests/nn
	$(RUN) -m pytest

lint: $(VENV)/dev.installed
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) demo build *.egg-info

$(RUN):
	$(PYTHON) -m venv $(VENV)

$(VENV)/cpu.installed: setup.py | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

$(VENV)/dev.installed: setup.py | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[cpu,eval,data,dev]'
	$(RUN) -m pip check
	touch $@

# Where the packages cannot be installed, the tests that read them are skipped and say so.
debian:
	@dpkg -s $(DEBIAN_PACKAGES) >/dev/null 2>&1 || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES) >/dev/null; } || \
	  echo "Not installed: $(DEBIAN_PACKAGES); the tests of the emoji set will be skipped."
