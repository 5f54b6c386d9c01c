"""Generated damage to what a run reads: tar shards, images and tables. Whatever comes, a sample is used, broken with a
reason, or the set is refused in a sentence; nothing else is raised, nothing takes long or much memory, and what was not
touched is read as what it is.

Each kind runs in a process of its own (``python tests/hostile/test_data.py KIND FOLDER``), which prints its counts.
"""
import faulthandler
import io
import json
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


from vilg.data.images import IMAGE_SUFFIXES, read_image
from vilg.data.sample import BrokenSample, Reading
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.shards import INDEX_FILE, ShardsConfig, ShardStream
from vilg.data.sources.table import TableConfig, TableSource
from vilg.errors import VilgError
from vilg.tokenizers.text.wordpiece import is_blank

ROOT = Path(__file__).resolve().parents[2]
CASES, SECONDS, MEGABYTES = 400, 2.0, 1000
FORMS = {"PNG": {}, "JPEG": {}, "WEBP": {"lossless": True}, "AVIF": {}, "JPEG2000": {}, "GIF": {}, "TIFF": {},
         "BMP": {}, "PPM": {}}
SAMPLES = 6


def picture(number, form="PNG", size=(40, 24)):
    buffer = io.BytesIO()
    pixels = np.full((size[1], size[0], 3), 20 * number, "uint8")
    pixels[:, ::2, 1] = 200
    Image.fromarray(pixels).save(buffer, form, **FORMS[form])
    return buffer.getvalue()


def said(number):
    return f"第{number}张图，一只猫坐在草地上"


def damaged(content, rng):
    """Bytes with flips, cuts, insertions, repetitions, runs of one value, numbers at their limits, or parts swapped."""
    content = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place, kind = int(rng.integers(max(1, len(content)))), int(rng.integers(8))
        some = int(rng.integers(1, 64))
        if kind == 0:
            content[place:place + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = rng.bytes(some)
        elif kind == 3:
            content[place:place] = content[max(0, place - 8 * some):place]
        elif kind == 4:
            content[place:place + some] = bytes([int(rng.choice([0, 255, 0x2D, 0x37]))]) * some
        elif kind == 5:
            content[place:place + 4] = bytes.fromhex(str(rng.choice(["ffffffff", "7fffffff", "80000000", "00000000"])))
        elif kind == 6:
            del content[place:place + some]
        else:
            other = int(rng.integers(max(1, len(content))))
            content[place:place + some], content[other:other + some] = (content[other:other + some],
                                                                        content[place:place + some])
    return bytes(content)


def headers(content, rng):
    """An archive with a header's field replaced by something else, its checksum made right again."""
    content = bytearray(content)
    places = [place for place in range(0, len(content) - 511, 512) if content[place + 257:place + 262] == b"ustar"]
    for place in rng.choice(places, int(rng.integers(1, 4))):
        start, length, values = [
            (124, 12, [b"\xff" * 8 + b"\xff\xff\xfe\0", b"77777777777\0", b"-0000000200\0", b"\x80" + b"\xff" * 11,
                       b"000000000x0\0", bytes(12), b"00000000000\0"]),
            (156, 1, [b"x", b"g", b"L", b"K", b"S", b"5", b"1", b"2", b"7", b"\0", b"V", b"\xff"]),
            (0, 100, [b"..\0", b"/\0", b".txt\0", b"a\0b.png\0", b"\xff\xfe.png\0", b"0.png\0"]),
            (257, 8, [b"ustar  \0", bytes(8), b"gnu\0\0\0\0\0"]),
            (386, 12, [b"\x80" + b"\xff" * 11]),
        ][int(rng.choice(5, p=[0.4, 0.25, 0.2, 0.1, 0.05]))]
        value = values[int(rng.integers(len(values)))]
        content[place + start:place + start + min(length, len(value))] = value[:length]
        content[place + 148:place + 156] = b" " * 8
        content[place + 148:place + 156] = b"%06o\0 " % (sum(content[place:place + 512]) % 0o777777)
    return bytes(content)


def archive(rng):
    import tarfile
    buffer = io.BytesIO()
    form = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT][int(rng.integers(3))]
    stem = ["{}", "IMG.{}", "长" * 60 + "{}"][int(rng.integers(3))]
    files = [(stem.format(number) + suffix, content) for number in range(SAMPLES) for suffix, content in
             ((".png", picture(number)), (".txt", said(number).encode()))]
    if rng.random() < 0.3:
        files = [files[place] for place in rng.permutation(len(files))]
    if rng.random() < 0.2:  # a key that comes twice, with another sample's image
        first, other = rng.permutation(SAMPLES)[:2]
        place = int(rng.integers(len(files) + 1))
        files.insert(place, (stem.format(first) + ".png", picture(other)))
    with tarfile.open(fileobj=buffer, mode="w", format=form if "长" not in stem else tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def right(sample):
    """Whether what a sample shows and says can be: typed, visible, and the caption of an untouched image its own."""
    good = sample.image.dtype == np.uint8 and sample.image.ndim == 3 and sample.image.shape[2] == 3
    good = good and sample.captions and not any(map(is_blank, sample.captions))
    good = good and not any(is_blank(text) for pair in sample.questions for text in pair)
    for number in range(SAMPLES):
        if said(number) in sample.captions:
            others = [np.asarray(Image.open(io.BytesIO(picture(other)))) for other in range(SAMPLES) if other != number]
            good = good and not any(np.array_equal(sample.image, other) for other in others)
    return bool(good)


def read(source, counts):
    for number in range(len(source)):
        try:
            counts["used" if right(source[number]) else "wrong"] += 1
        except BrokenSample:
            counts["broken"] += 1


def shard_case(number, rng, folder, counts):
    content = archive(rng)
    kind = int(rng.integers(4))
    content = [damaged, headers, lambda *both: damaged(headers(*both), rng), lambda text, _: text][kind](content, rng)
    (folder / "a.tar").write_bytes(content)
    (folder / INDEX_FILE).unlink(missing_ok=True)
    if kind == 3 or rng.random() < 0.2:
        index = json.dumps({"a.tar": SAMPLES, "b.tar": 3}).encode()
        (folder / INDEX_FILE).write_bytes(damaged(index, rng))
    read(ShardStream(ShardsConfig(path=str(folder))), counts)


def image_case(number, rng, folder, counts):
    form = list(FORMS)[number % len(FORMS)]
    whole = picture(3, form)
    content = damaged(whole, rng)
    if rng.random() < 0.2:
        content = whole[:int(len(whole) * 0.7)]
    image = read_image(content, "x", Reading(least_side=8 if rng.random() < 0.5 else None, max_pixels=10_000_000))
    bad = image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size > 30_000_000
    if content == whole[:int(len(whole) * 0.7)] and form not in ("JPEG2000", "AVIF"):  # these are whole at any length
        bad = True
    counts["wrong" if bad else "used"] += 1


ODD = ['"', '""', "\t", "\r", "\x00", "\u200b", "\ud83d", "\\ud83d", "null", "1e999", "-1", "[" * 3000,
       "{" * 3000, "]", "}", '"picture"', '"captions": [', '"questions": [[', "../" * 50, "/dev/zero",
       "/proc/self/mem", "0.png", "NaN", "\ufeff",
       "\u2028", '": "', "9" * 5000, "x" * 100_000, "#", "'", "=1+1", "\U000e0001", "\u3164"]


def table_case(number, rng, folder, counts):
    kind = ["plain.tsv", "quoted.tsv", "t.jsonl"][number % 3]
    rows = {"plain.tsv": lambda n: f"{n}.png\t{said(n)}", "quoted.tsv": lambda n: f'"{n}.png"\t"他说""{said(n)}"""',
            "t.jsonl": lambda n: json.dumps({"picture": f"{n}.png", "captions": [said(n)],
                                             "questions": [["几？", "一"]]},
                                            ensure_ascii=False)}[kind]
    lines = [rows(n) for n in range(SAMPLES)]
    touched = list(lines)
    for _ in range(int(rng.integers(1, 4))):
        line = int(rng.integers(SAMPLES))
        place = int(rng.integers(len(touched[line]) + 1))
        odd = ODD[int(rng.integers(len(ODD)))]
        touched[line] = touched[line][:place] + odd + touched[line][place + int(rng.integers(0, 3)):]
    content = "\n".join(touched).encode("utf-8", "surrogatepass")
    if rng.random() < 0.4:
        content = damaged(content, rng)
    (folder / kind).write_bytes(content)
    expected = {n: said(n) if kind != "quoted.tsv" else f'他说"{said(n)}"' for n in range(SAMPLES)}
    kept = set(content.decode("utf-8", "replace").split("\n")) & set(lines)
    try:
        source = TableSource(TableConfig(path=str(folder / kind)))
    except VilgError as error:
        counts["wrong"] += bool(kept) and "cannot be read as a UTF-8 table" not in str(error)
        raise
    read(source, counts)
    found = {line: index for index in range(len(source))
             if (line := source.rows.numbered(source._first + index)[1]) in kept}
    for line in kept:
        try:
            counts["wrong"] += source[found[line]].captions != [expected[lines.index(line)]]
        except (BrokenSample, KeyError):
            counts["wrong"] += 1


CASE = {"shards": shard_case, "images": image_case, "tables": table_case}


def run(kind: str, folder: Path) -> Counter:
    """All cases of a kind; what is not as it should be is printed with its number."""
    counts: Counter[str] = Counter(cases=0, used=0, broken=0, refused=0, tracebacks=0, hangs=0, wrong=0)
    for number in range(SAMPLES):
        (folder / f"{number}.png").write_bytes(picture(number))
    for number in range(CASES):
        counts["cases"] += 1
        wrong, started = counts["wrong"], time.monotonic()
        faulthandler.dump_traceback_later(30, exit=True)
        try:
            CASE[kind](number, np.random.default_rng([17, number]), folder, counts)
        except BrokenSample:
            counts["broken"] += 1
        except VilgError as error:
            counts["refused"] += 1
            counts["tracebacks"] += len(str(error)) > 5000
        except Exception:
            counts["tracebacks"] += 1
            print(f"{kind} {number}", traceback.format_exc(), file=sys.stderr)
        counts["hangs"] += time.monotonic() - started > SECONDS
        if counts["wrong"] > wrong:
            print(f"{kind} {number}: accepted what it should not", file=sys.stderr)
    faulthandler.cancel_dump_traceback_later()
    counts["megabytes"] = _peak_megabytes()
    return counts


def _peak_megabytes():
    """Of this process since its start; what getrusage says begins with the peak of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


@pytest.mark.parametrize("kind", CASE)
def test_damage_never_surprises(kind, tmp_path):
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, kind, str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True, timeout=400, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(kind, counts)
    assert counts["cases"] >= 300 and counts["used"] and counts["broken"]
    assert (counts["tracebacks"], counts["hangs"], counts["wrong"]) == (0, 0, 0), done.stderr[-3000:]
    assert counts["megabytes"] < MEGABYTES


def test_a_folder_of_damage_is_read_to_its_end(tmp_path):
    rng = np.random.default_rng(5)
    for number in range(60):
        name = tmp_path / f"{number}{IMAGE_SUFFIXES[number % len(IMAGE_SUFFIXES)]}"
        name.write_bytes(damaged(picture(3, list(FORMS)[number % len(FORMS)]), rng))
        name.with_suffix(".txt").write_bytes(damaged(said(3).encode(), rng) if number else said(3).encode())
    counts = Counter()
    read(FolderSource(FolderConfig(path=str(tmp_path))), counts)
    assert counts["used"] + counts["broken"] == 60 and counts["used"] and counts["broken"] > 20


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
