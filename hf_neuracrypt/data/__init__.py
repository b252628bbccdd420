"""From a dataset of plain images to one of ciphertexts, and what is known about both.

sources.py   a dataset by whatever name a user has for it
columns.py   which columns hold images and labels, and how labels are stored
batches.py   many images prepared, and taken the whole way to stored rows
dataset.py   the `datasets.map` step: `encrypt_dataset`
view.py      encryption in memory, row by row: `EncryptedView`
record.py    what is public about an encryption, beside every dataset and model
manifest.py  an encrypted dataset on disk: its files, and whether they are as they were written
"""
