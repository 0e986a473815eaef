"""What speaker embeddings are measured against, on the same files and with the same functions.

``python -m workers.embeddings.bench make FOLDER COUNTxUTTERANCES…`` makes a corpus; ``bound FOLDER N`` only reads and
safely unpickles it, to arrays, which nothing that reads it can beat; ``pool FOLDER N OUTPUT`` computes it by a plain
multiprocessing.Pool of N contiguous equal splits of the speakers, the way it is usually done.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import sys
from collections.abc import Sequence

import numpy as np

from workers.embeddings.new_files import Disk, NewFile
from workers.embeddings.result import encode_pickle, make_result
from workers.embeddings.serve import SYNCED_AT_ONCE
from workers.embeddings.speaker import mean_of
from workers.embeddings.utterance import Files, is_utterance, parse_utterance

DIMENSIONS = 256
DATASETS = 4
READ_AT_ONCE = 10

Speaker = tuple[str, str, str]
"""Corpus, dataset, speaker."""


def make(folder: str, sizes: Sequence[tuple[int, int]]) -> None:
    """For each (speakers, utterances) so many of them, in that order of names, spread over DATASETS."""
    rng = np.random.default_rng(7)
    total = sum(count for count, _ in sizes)
    number = 0
    for count, utterances in sizes:
        for _ in range(count):
            name = f"speaker_{number:06}"
            place = os.path.join(folder, f"dataset_{number * DATASETS // total}", name)
            os.makedirs(place)
            voice = rng.standard_normal(DIMENSIONS)
            for index in range(utterances):
                utterance = {
                    "embedding": (voice + 0.1 * rng.standard_normal(DIMENSIONS)).astype(np.float32),
                    "utterance_id": f"{name}_{index:05}",
                    "original_path": f"/corpus/{name}/{index:05}.wav",
                    "dataset": "made",
                    "speaker_id": name,
                }
                with open(os.path.join(place, f"{index:05}.pkl"), "wb") as file:
                    pickle.dump(utterance, file)
            number += 1


def speakers(corpus: str) -> list[Speaker]:
    return [
        (corpus, dataset, name)
        for dataset in sorted(os.listdir(corpus))
        for name in sorted(os.listdir(os.path.join(corpus, dataset)))
    ]


def open_files(speaker: Speaker) -> tuple[int, Files]:
    folder = os.open(os.path.join(*speaker), os.O_RDONLY | os.O_DIRECTORY)
    names = sorted(name for name in os.listdir(folder) if is_utterance(name, (), ()))
    return folder, Files(names, folder, follow_links=False)


def read(some: Sequence[Speaker]) -> None:
    """As a process of ours reads: the files of the next speaker are asked for before those of this one are read."""
    opened = map(open_files, some)
    following = next(opened, None)
    while following is not None:
        (folder, files), following = following, next(opened, None)
        if following is not None:
            following[1].ask()
        for name in files.names:
            parse_utterance(name, files.read_next())
        os.close(folder)


def bound(corpus: str, processes: int) -> None:
    everyone = speakers(corpus)
    chunks = [everyone[begin : begin + READ_AT_ONCE] for begin in range(0, len(everyone), READ_AT_ONCE)]
    with multiprocessing.Pool(processes) as pool:
        for _ in pool.imap_unordered(read, chunks):
            pass


def compute_split(split: list[Speaker], output: str) -> None:
    disk = Disk()
    for begin in range(0, len(split), SYNCED_AT_ONCE):
        errors = disk.keep([compute_speaker(speaker, output) for speaker in split[begin : begin + SYNCED_AT_ONCE]])
        if any(errors):
            raise SystemExit(f"results can't be written: {errors}")


def compute_speaker(speaker: Speaker, output: str) -> NewFile:
    _, dataset, name = speaker
    folder, files = open_files(speaker)
    mean = mean_of(files, on_problem=lambda name, bad: None)
    os.close(folder)
    os.makedirs(os.path.join(output, dataset), exist_ok=True)
    return NewFile(os.path.join(output, dataset, f"{name}.pkl"), encode_pickle(make_result(mean, dataset, name)))


def pool(corpus: str, processes: int, output: str) -> None:
    everyone = speakers(corpus)
    ends = [len(everyone) * number // processes for number in range(processes + 1)]
    splits = [everyone[begin:end] for begin, end in itertools.pairwise(ends)]
    with multiprocessing.Pool(processes) as workers:
        workers.starmap(compute_split, [(split, output) for split in splits], chunksize=1)


def main(arguments: Sequence[str]) -> None:
    what, folder, *rest = arguments
    if what == "make":
        make(folder, [(int(count), int(size)) for count, size in (text.split("x") for text in rest)])
    elif what == "bound":
        bound(folder, int(rest[0]))
    elif what == "pool":
        pool(folder, int(rest[0]), rest[1])
    else:
        raise SystemExit(f"{what!r} is none of make, bound, pool")


if __name__ == "__main__":
    main(sys.argv[1:])
