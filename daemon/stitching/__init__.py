"""The segments of a finished job on the film's clock: ``dubd stitch``.

``placing`` finds out what is to be laid where, ``mixing`` sums it, block by block, ``limiter`` keeps the sum within
full scale, ``wave_file`` writes it, ``laying`` makes the tracks with these.
"""
