"""A simulator of the daemon's mind: the real core in virtual time, with simulated workers and a simulated disk.

python -m tests.sim --histories 5000
python -m tests.sim --seed 17          one history again, with its story
python -m tests.sim --scale            1,000 GPUs and a million segments
"""
