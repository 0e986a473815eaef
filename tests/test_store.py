"""A delivery is a segment once its file is what the worker said, synced and journalled; and only once."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy
import pytest
import soundfile

from daemon.core.job import Limits
from daemon.journal import read_journal
from daemon.live_job import LiveJob
from daemon.store import Delivery, store
from tests.shell import Fault, deliver, failing_at, make_live_job
from workers.wav import silent_wav


@pytest.fixture
def job(tmp_path: Path) -> LiveJob:
    return make_live_job(tmp_path)


def encode_job(folder: Path) -> LiveJob:
    return make_live_job(
        folder,
        {"mode": "encode", "speakers": [{"speaker_id": 0, "reference_audio": "a.wav", "reference_text": "said"}]},
    )


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.asarray(array))
    return buffer.getvalue()


def oks(job: LiveJob) -> list[int]:
    return [record["p"] for record in read_journal(job.folder / "journal.jsonl") if record["t"] == "ok"]


def test_what_is_stored_survives(job: LiveJob) -> None:
    """The file lies under its lasting name, and the journal gives back all that is known of it."""
    deliveries = [
        deliver(job, 2, frames=80),
        deliver(job, 0, frames=160, seed=2**63 - 1, truncated=True, seeds=(7, 8), flaws=("clicks",), attempts=3),
    ]
    assert store(deliveries) == []
    again = LiveJob.open(job.folder, Limits())
    for live in (job, again):
        assert [segment.status for segment in live.segments] == ["ok", "waiting", "ok"]
        first = live.segments[0]
        assert (first.frames, first.sample_rate, first.seed, first.truncated) == (160, 8_000, 2**63 - 1, True)
        assert (first.seeds, first.flaws, first.attempts, first.worker) == ((7, 8), ("clicks",), 3, 1)
        assert (first.device, first.generate_s, first.key, first.cached) == ("cpu", 0.5, "key0", False)
        for position in (0, 2):
            content = live.stored_file(position).read_bytes()
            assert live.segments[position].sha256 == hashlib.sha256(content).hexdigest()
    assert sorted(os.listdir(job.segments_folder)) == ["0.wav", "2.wav"]


def test_cached_ones_have_no_worker(job: LiveJob) -> None:
    """What was copied was spoken by nobody here."""
    store([deliver(job, 1, cached=True)])
    assert (job.segments[1].worker, job.segments[1].device, job.segments[1].cached) == (None, None, True)


def missing(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    path.rename(path.with_name("hidden"))
    path.symlink_to("hidden")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    (path / "below").mkdir(parents=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(500))


def longer(path: Path) -> None:
    path.write_bytes(silent_wav(81, 8_000, "PCM_16"))


def faster(path: Path) -> None:
    path.write_bytes(silent_wav(80, 16_000, "PCM_16"))


@pytest.mark.parametrize("lie", [missing, link, fifo, folder, empty, torn, noise, longer, faster])
def test_a_lie_is_found_and_harms_nobody_else(job: LiveJob, lie: Callable[[Path], None]) -> None:
    """The delivery comes back with what is wrong, its file is gone, its neighbours are stored."""
    deliveries = [deliver(job, position) for position in range(3)]
    lie(deliveries[1].file)
    (spoilt,) = store(deliveries)
    assert spoilt.delivery is deliveries[1]
    assert spoilt.code in ("no_audio", "bad_audio") and spoilt.message
    assert [segment.status for segment in job.segments] == ["ok", "waiting", "ok"]
    assert oks(job) == [0, 2]
    assert not os.path.lexists(deliveries[1].file)


def test_a_wav_of_nothing_is_a_lie(job: LiveJob) -> None:
    """Even when the worker said as much."""
    (spoilt,) = store([deliver(job, 0, frames=0)])
    assert spoilt.code == "bad_audio"


def test_other_forms_of_wav(job: LiveJob) -> None:
    """Whatever subtype the job asked for can be checked."""
    for position, subtype in enumerate(("PCM_24", "FLOAT", "PCM_U8")):
        buffer = io.BytesIO()
        soundfile.write(buffer, numpy.zeros(80), 8_000, format="WAV", subtype=subtype)
        assert store([deliver(job, position, content=buffer.getvalue())]) == []


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("codes.npy", npy(numpy.zeros((10, 80), dtype=numpy.int64)))
    return buffer.getvalue()


GOOD_CODES = npy(numpy.zeros((10, 80), dtype=numpy.int64))


def test_codes_are_stored(tmp_path: Path) -> None:
    """For an encode job the file is an array of codes."""
    job = encode_job(tmp_path)
    assert store([deliver(job, 0, content=GOOD_CODES, sample_rate=0)]) == []
    assert job.segments[0].status == "ok" and job.stored_file(0).read_bytes() == GOOD_CODES


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"noise",
        GOOD_CODES[:-8],
        GOOD_CODES[:40],
        archive(),
        npy(numpy.zeros((10, 79), dtype=numpy.int64)),
        npy(numpy.zeros((10, 80))),
        npy(numpy.zeros(80, dtype=numpy.int64)),
        npy(numpy.array([[{}] * 80] * 10)),
        GOOD_CODES.replace(b"(10, 80)", b"(10**9,)"),
        GOOD_CODES.replace(b"'<i8'", b"'<m8'"),
        b"PK\x03\x04" + b"\0" * 50,
    ],
)
def test_what_is_no_codes_is_found(tmp_path: Path, content: bytes) -> None:
    """Nothing that stands in the file is unpickled, unpacked, or believed in its size."""
    job = encode_job(tmp_path)
    (spoilt,) = store([deliver(job, 0, content=content)])
    assert spoilt.code == "bad_codes"
    assert job.segments[0].status == "waiting"


def test_a_header_that_asks_for_all_memory_is_a_lie(tmp_path: Path) -> None:
    """It costs its segment a try, and not the daemon."""
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (10, 80000000000000), }"
    content = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117).encode() + b"\n" + b"\0" * 64
    (spoilt,) = store([deliver(encode_job(tmp_path), 0, content=content, frames=80_000_000_000_000)])
    assert spoilt.code == "bad_codes"


def stored_once(job: LiveJob, deliveries: list[Delivery], contents: list[bytes]) -> None:
    assert sorted(oks(job)) == [0, 1, 2]
    for position, delivery in enumerate(deliveries):
        assert job.stored_file(position).read_bytes() == contents[position]
        assert delivery.sha256 == hashlib.sha256(contents[position]).hexdigest()
        assert job.segments[position].status == "ok"
    assert [segment.status for segment in LiveJob.open(job.folder, Limits()).segments] == ["ok"] * 3
    assert sorted(os.listdir(job.segments_folder)) == ["0.wav", "1.wav", "2.wav"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_the_same_call_again_after_a_failure_at_any_step(tmp_path: Path, error: int) -> None:
    """Whichever durable operation fails, the next call with the same deliveries ends with each segment stored once."""
    number = 0
    while True:
        number += 1
        job = make_live_job(tmp_path)
        deliveries = [deliver(job, position, frames=80 + position) for position in range(3)]
        contents = [delivery.file.read_bytes() for delivery in deliveries]
        with failing_at(number, error=error) as fired:
            try:
                store(deliveries)
            except Fault:
                pass
            else:
                break
        assert fired()
        assert store(deliveries) == []
        stored_once(job, deliveries, contents)
    assert not fired() and number > 7


def test_two_failures_in_a_row(tmp_path: Path) -> None:
    """The second one during the repair of the first."""
    for first in range(1, 9):
        for second in (1, 2, 5):
            job = make_live_job(tmp_path)
            deliveries = [deliver(job, position) for position in range(3)]
            contents = [delivery.file.read_bytes() for delivery in deliveries]
            for number in (first, second):
                with failing_at(number), suppress(Fault):
                    store(deliveries)
            assert store(deliveries) == []
            stored_once(job, deliveries, contents)


def test_a_file_whose_sync_failed_is_written_anew(job: LiveJob) -> None:
    """What the kernel could not write it may have dropped, and would call synced the next time: the content that was
    checked goes into a new file."""
    delivery = deliver(job, 0)
    content, first = delivery.file.read_bytes(), delivery.file.stat().st_ino
    with failing_at(1, ["fsync"]), pytest.raises(Fault):
        store([delivery])
    with delivery.file.open("rb"):  # so that its number is not given again
        assert store([delivery]) == []
    assert job.stored_file(0).read_bytes() == content
    assert job.stored_file(0).stat().st_ino != first
    assert not delivery.file.exists()


def test_what_a_failed_sync_has_lost_is_never_stored(job: LiveJob) -> None:
    """Nothing but what was checked: what the disk has not kept is spoken again."""
    delivery = deliver(job, 0)
    size = delivery.file.stat().st_size
    with failing_at(1, ["fsync"]), pytest.raises(Fault):
        store([delivery])
    delivery.file.write_bytes(b"\0" * size)
    (spoilt,) = store([delivery])
    assert spoilt.delivery is delivery and spoilt.code == "bad_audio"
    assert oks(job) == [] and os.listdir(job.segments_folder) == []


def test_long_recordings_are_not_held_in_memory(job: LiveJob) -> None:
    """Neither while they are checked and synced, nor when that has to be repeated."""
    frames = 4_000_000
    deliveries = [deliver(job, position, frames=frames) for position in range(3)]
    tracemalloc.start()
    try:
        with failing_at(2, ["fsync"]), pytest.raises(Fault):
            store(deliveries)
        assert store(deliveries) == []
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2 * frames, "less than one of them"


def test_what_can_not_be_recorded_harms_nobody_else(job: LiveJob) -> None:
    """A number that JSON can't hold, as a finishing process may say one, spoils its segment alone."""
    deliveries = [deliver(job, 0), deliver(job, 1, finishing={"gain_db": float("nan")}), deliver(job, 2)]
    (spoilt,) = store(deliveries)
    assert (spoilt.delivery.position, spoilt.code) == (1, "internal_error")
    assert sorted(oks(job)) == [0, 2]
    assert [segment.status for segment in job.segments] == ["ok", "waiting", "ok"]


def test_jobs_are_stored_side_by_side(tmp_path: Path) -> None:
    """A batch may be of many jobs; each has its own journal."""
    jobs = [make_live_job(tmp_path) for _ in range(3)]
    store([deliver(job, position) for position in range(3) for job in jobs])
    assert [oks(job) for job in jobs] == [[0, 1, 2]] * 3
