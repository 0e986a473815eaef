"""The commands, one module each; ``daemon/cli.py`` says what they take, and imports a module when its command is given.

A command's ``execute`` returns the exit code. A failure that can be foreseen is a ``CommandFailed``: a message that
says what is wrong and how to mend it, and the exit code. Shared between them: ``invocation`` (settings, failures),
``liveness`` (is there a daemon), ``reading`` (the files that the daemon shows), ``listing`` (all jobs), ``following``
(a job to its end), ``asking`` (one worker, without a daemon), ``showing`` (words and numbers for people).
"""
