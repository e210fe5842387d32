import random
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from gradwatch.event_files.records import Damage, checksum, records


def framed(content):
    length = len(content).to_bytes(8, "little")
    sums = [masked_crc32c(part).to_bytes(4, "little") for part in (length, content)]
    return length + sums[0] + content + sums[1]


def file_of(path, *parts):
    path.write_bytes(b"".join(parts))
    return path


CONTENTS = [random.Random(seed).randbytes(size) for seed, size in enumerate((0, 3, 100, 1024, 5000))]
SOUND = [framed(content) for content in CONTENTS]


@pytest.mark.parametrize("size", [*range(10), 63, 64, 65, 1023, 1024, 1025, 2048, 70_001])
def test_checksum_is_that_of_tensorboards_slow_twin(size):
    content = random.Random(size).randbytes(size)
    assert checksum(content) == masked_crc32c(content)


def test_records_are_those_that_tensorboard_reads(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(20):
            writer.add_scalars("many", {str(number): number * step for number in range(20)}, step)
            writer.add_text("text", "x" * 3000 * step, step)
    for path in tmp_path.rglob("*tfevents*"):
        assert list(records(path)) == list(RawEventFileLoader(str(path)).Load())


def test_a_file_cut_anywhere_gives_the_records_before_the_cut(tmp_path):
    whole = b"".join(SOUND)
    ends = [sum(map(len, SOUND[: count + 1])) for count in range(len(SOUND))]
    for cut in [*range(200), *range(200, len(whole), 97), len(whole)]:
        read = list(records(file_of(tmp_path / "cut", whole[:cut])))
        complete = sum(end <= cut for end in ends)
        assert read[:complete] == CONTENTS[:complete]
        assert [damage.is_end for damage in read[complete:]] == [True] * (cut not in (0, *ends))


def test_a_damaged_content_is_left_out_and_the_rest_is_read(tmp_path):
    damaged = bytearray(SOUND[3])
    damaged[500] ^= 4
    read = list(records(file_of(tmp_path / "file", SOUND[1], bytes(damaged), SOUND[4])))
    assert read == [CONTENTS[1], Damage(len(SOUND[1]), "a record is damaged"), CONTENTS[4]]


@pytest.mark.parametrize("byte", range(12))
@pytest.mark.parametrize("gap", [b"", bytes(5000), b"\xff" * 77])
def test_after_a_damaged_length_reading_goes_on_at_the_next_sound_one(tmp_path, byte, gap):
    damaged = bytearray(SOUND[2])
    damaged[byte] ^= 0x81
    read = list(records(file_of(tmp_path / "file", SOUND[1], bytes(damaged), gap, SOUND[3], SOUND[4])))
    assert read == [CONTENTS[1], Damage(len(SOUND[1]), "a record's length is damaged"), *CONTENTS[3:]]


def test_a_file_damaged_everywhere_is_read_about_once(tmp_path, monkeypatch):
    path = file_of(tmp_path / "file", *[SOUND[2] + b"\r" for _ in range(2000)])  # as a copy in text mode makes it
    taken = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, size):
            content = self.file.read(size)
            taken.append(len(content))
            return content

        def __getattr__(self, name):
            return getattr(self.file, name)

    sound = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: Counting(sound(self, mode)))
    read = list(records(path))
    assert [each for each in read if isinstance(each, bytes)] == [CONTENTS[2]] * 2000
    assert sum(taken) < 20 * path.stat().st_size


def test_a_length_beyond_the_file_allocates_nothing(tmp_path):
    length = (1 << 62).to_bytes(8, "little")
    path = file_of(tmp_path / "file", length, masked_crc32c(length).to_bytes(4, "little"), b"x" * 100)
    assert [damage.is_end for damage in records(path)] == [True]


@pytest.mark.parametrize("content", [b"", bytes(100), b"\xff" * 3000, b"not an event file, but a text\n" * 100_000])
def test_what_is_no_event_file_holds_no_records(tmp_path, content):
    assert not [read for read in records(file_of(tmp_path / "file", content)) if isinstance(read, bytes)]


def test_random_files_never_raise(tmp_path):
    whole = b"".join(SOUND)
    chance = random.Random(0)
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        read = records(file_of(tmp_path / "file", bytes(spoilt)))
        assert {content for content in read if isinstance(content, bytes)} <= set(CONTENTS)


def test_a_file_that_is_gone_is_an_oserror():
    with pytest.raises(FileNotFoundError):
        list(records(Path("nowhere")))
