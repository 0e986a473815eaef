"""Speaker embeddings: one mean for each speaker, from one embedding for each utterance.

A process of this package is started like a worker, by ``workers/__main__.py --embeddings``, and needs numpy alone. It
knows nothing of engines, jobs or other processes; it is told of some speakers at a time and answers for each::

    > hello    {protocol, utterances{path, device, inode, follow_links}, format, min_utterances,
                exclude_prefixes, exclude_patterns, beat_seconds}
    < ready    {protocol, pid, python, numpy}
               or failed {code, message} and exit
    > speakers {speakers: [{ticket, dataset, speaker, output, existing}]}
    < problem  {ticket, file, code, message}              an utterance that could not be used, and why
    < results  {results: [{ticket, status, ...}]}         each ticket once, in any order
    < beat     {progress, memory_bytes}                   every beat_seconds; progress stands still when it hangs,
                                                          and goes on while it waits for the disk that it writes to

The frames are those of ``workers.protocol``. The end of standard input ends the process at once.

``utterances`` is the folder that holds DATASET/SPEAKER/UTTERANCE; ``device`` and ``inode`` say which folder was meant
when its path was checked, and unless ``follow_links`` is true nothing below it is reached through a link. ``output`` is
the file to make and ``existing`` a list of files, any of which makes the work needless if it holds a whole result. The
file of an ``ok`` is synced and under its name; to sync its folder is the daemon's.

``status`` is one of: ``ok`` {found, utterances, failed, dim, sha256}; ``skipped`` {existing: position in that list,
utterances, failed, dim}; ``too_few`` {found}: fewer utterances than ``min_utterances``, nothing was loaded;
``failed`` {found, failed, code, message}; ``disk_full`` {message}: nobody's fault, to be asked for again.

    pickles.py      bytes → plain values, or a refusal: nothing that a pickle names is ever run
    utterance.py    a file → a vector, its id and its path
    speaker.py      a folder of utterances → their mean
    result.py       the result as a dictionary, as bytes, and read back
    new_files.py    files that appear whole, many for one sync
    serve.py        the loop between the pipe and these
"""
