"""The pages that people open: report.html of a job, status.html of the daemon.

Each is one file that needs nothing but itself and, for a job, the WAVs beside it: no server, no network, no other
file. ``page`` puts the parts of a page together, ``pages/`` holds them as they are read by a browser, ``job_report``
and ``status_page`` say what each shows.
"""
