"""Encryption jobs that fill a folder, in any number of processes, on any number of machines, resumable.

job.py     what is to be encrypted where to, and the units it is cut into
notes.py   what finished shards left beside it
writer.py  one worker: does its units, and completes the folder if it was the last
run.py     runs workers, with a progress bar
"""
