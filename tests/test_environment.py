"""The script that makes Python environments for make: they are whole or not there, and mended when they are neither."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/environment"
# Makes an environment as Python's venv does, as far as the script sees: a python, and a pip that tells where it lives.
PYTHON = """#!/bin/sh
case "$*" in
  *"import ensurepip"*|*"import venv,pip"*) exit ${WITHOUT_VENV:-0} ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    printf '#!/bin/sh\\necho "pip 1.0 from %s/lib/python/site-packages/pip (python 3)"\\n' "$3" >"$3/bin/pip"
    chmod +x "$3/bin/pip" ;;
  *"pip install"*) echo "$*" >>"$LOG"; exit ${PIP_FAILS:-0} ;;
  *"import broken"*) echo "ImportError: broken is broken" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """A call of the script in a project of its own, by nobody in particular: returns what ran and how often pip did."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    (project / ".ci").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(SCRIPT, project / ".ci")
    (project / "setup.py").write_text("one")
    for name, text in {"python": PYTHON, "id": "#!/bin/sh\necho 1000\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def call(modules="paddle", folder=".venv", **settings):
        log = tmp_path / "log"
        log.write_text("")
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python"), "LOG": str(log)}
        ran = subprocess.run(["sh", ".ci/environment", folder, "cpu", modules], cwd=project, capture_output=True,
                             text=True, env=environment | settings, timeout=60)
        return ran, len(log.read_text().splitlines())

    call.project = project
    call.folder = project / ".venv"
    return call


def test_an_environment_is_made_once_and_brought_up_to_date(make):
    ran, installs = make()
    assert (ran.returncode, installs, ran.stderr) == (0, 1, "") and (make.folder / "bin/python").exists()
    (make.folder / "mine").touch()
    assert make()[1] == 0
    (make.project / "setup.py").write_text("two")
    assert make()[1] == 1 and make()[1] == 0 and (make.folder / "mine").exists()


@pytest.mark.parametrize("settings", [{"PIP_FAILS": "1"}, {"modules": "broken"}])
def test_a_first_install_that_fails_leaves_nothing(make, settings):
    ran, _ = make(**settings)
    assert ran.returncode and not make.folder.exists()
    assert "modules" not in settings or "broken: ImportError: broken is broken" in ran.stderr
    assert make()[0].returncode == 0


def test_an_update_that_fails_is_tried_again_and_loses_nothing(make):
    make()
    (make.folder / "mine").touch()
    (make.project / "setup.py").write_text("two")
    assert make(PIP_FAILS="1")[0].returncode and (make.folder / "mine").exists()
    (make.project / "setup.py").write_text("one")  # what the last whole install was of, and no longer is
    ran, installs = make()
    assert (ran.returncode, installs) == (0, 1) and (make.folder / "mine").exists()


def half_made(folder):
    (folder / "bin/pip").unlink()


def broken_off(folder):
    (folder / "unfinished").touch()


def without_its_python(folder):
    (folder / "bin/pip").write_text("#!/nowhere/python\n")


def moved(folder):
    folder.rename(folder.parent / "there")
    shutil.copytree(folder.parent / "there", folder)
    pip = folder / "bin/pip"
    pip.write_text(pip.read_text().replace(".venv", "there"))


@pytest.mark.parametrize("damage", [half_made, broken_off, without_its_python, moved])
def test_what_is_not_whole_is_made_anew(make, damage):
    make()
    (make.folder / "old").touch()
    damage(make.folder)
    ran, installs = make()
    assert (ran.returncode, installs) == (0, 1) and "is not whole and is made anew" in ran.stdout
    assert not (make.folder / "old").exists() and make()[1] == 0


def test_a_python_that_makes_no_environments_gets_one_sentence(make):
    ran, installs = make(WITHOUT_VENV="1")
    assert ran.returncode == 1 and installs == 0 and not make.folder.exists()
    said, = ran.stderr.splitlines()
    assert "has no venv module" in said and "apt-get install python3-venv libgomp1" in said
