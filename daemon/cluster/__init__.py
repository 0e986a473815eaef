"""The pool on a cluster: ``pool.backend = "ray"``.

Ray is never imported into the daemon: a driver of Ray ends its process when the cluster's head is lost. It lives in a
child process, the bridge, which the daemon starts again until the cluster is back::

    daemon                          bridge                          a node
    backend: plan, transports       Ray's driver                    an actor for each worker
    connection  --frames, pipe-->   links  --calls of the actor-->  python workers/__main__.py
                <--frames, pipe--          <--long polls---------

Frames of workers/protocol.py go all the way, those of a worker wrapped with its link's number between daemon and
bridge. The bridge sees to the files: what a worker is to read is sent to its node once, by content; what it has written
comes back and is written where a local worker would have written it, before its "spoken" is passed on.
"""
