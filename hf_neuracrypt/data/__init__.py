"""From a dataset of plain images to one of ciphertexts, and what is known about both.

sources.py   a dataset by whatever name a user has for it
files.py     what lies in a folder: images, tables, and what may be an image and is not read
folders.py   a folder of images -> its splits and classes
headers.py   what the headers of DICOM files decide of rows
metadata.py  a metadata.csv among images -> the columns of their rows
tables.py    a folder of tables or archives -> its splits
columns.py   which columns hold images and labels
targets.py   what is to be learned: one class, several labels, probabilities, numbers
labels.py    how labels are stored and hidden
batches.py   many images prepared, and taken the whole way to stored rows
summary.py   what an owner is told before work
dataset.py   the `datasets.map` step: `encrypt_dataset`
view.py      encryption in memory, row by row: `EncryptedView`
record.py    what is public about an encryption, beside every dataset and model
places.py    folders and buckets, used alike
locks.py     one job at a time in each of them
manifest.py  an encrypted dataset on disk: its files, and whether they are as they were written
"""
