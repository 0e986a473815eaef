"""Speaker embeddings on the daemon's side: the corpus, the processes, and the job.

What computes is in ``workers/embeddings``; who computes what is decided in ``daemon/core/dealing.py``.
"""
