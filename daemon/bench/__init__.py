"""What ``dubd bench`` measures; docs/benchmarks.md says what each figure means.

Everything here watches from outside, as other programs do: real daemons in temporary folders, jobs dropped into their
inboxes, files that come out.
"""
