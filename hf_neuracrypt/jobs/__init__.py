"""Encryption jobs that fill a folder, in any number of processes, on any number of machines, resumable.

job.py     what is to be encrypted where to, and the units it is cut into
writer.py  what a unit leaves in the folder, and how the folder is completed
run.py     the driver: units to an executor, a progress bar, notes until all are there
"""
