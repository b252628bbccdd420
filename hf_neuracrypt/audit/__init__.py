"""What an attacker gets: the known attacks on the owner's own images, before publishing.

attacks.py     run_audit: all rows, in order
pairs.py       both sides of a folder, plain and encrypted
folder.py      what files, columns, labels and order give away
ciphertext.py  attacks on ciphertexts alone, and matching with candidate originals
known.py       attacks with known and chosen pairs
rows.py        a row, its grade and the thresholds; `audit.json` as `push` reads it, without SciPy
report.py      audit.json and audit.html
"""
