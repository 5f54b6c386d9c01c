# make demo DEVICE=gpu CUDA=126    the demo on a GPU: Paddle's wheel for that CUDA version (118, 126, 129, 130)
# make test-versions               the suite on each of VERSIONS of Paddle's CPU wheels; TESTS=tests/engine runs a part
# PyPI's paddlepaddle-gpu ends at 2.6.2; later ones come from Paddle's own index. The two wheels must not meet: a .venv
# that holds the CPU's is left alone, and GPUs get one of their own.
DEVICE ?= cpu
CUDA ?= 126
VERSIONS ?= 3.0.0 3.2.2 3.3.1
ifeq ($(DEVICE),gpu)
VENV = .venv-gpu
endif

.PHONY: gpu test-versions
gpu:
	@PYTHON="$(PYTHON)" PIP_EXTRA_INDEX_URL=https://www.paddlepaddle.org.cn/packages/stable/cu$(CUDA)/ \
		sh .ci/environment $(VENV) gpu paddle

test-versions: $(addprefix test-paddle-,$(VERSIONS))

test-paddle-%:
	@PYTHON="$(PYTHON)" sh .ci/environment .venv-paddle-$* jit,eval,data,styles,dev numba
	.venv-paddle-$*/bin/python -m pip install --quiet --disable-pip-version-check paddlepaddle==$*
	.venv-paddle-$*/bin/python -m pytest -m "not extras" $(TESTS)
