"""The owner's queries: images are encrypted here, and a model that sees ciphertexts alone answers.

classifier.py  a model on this machine: `Classifier`
endpoint.py    a model that is served elsewhere
files.py       files and folders of images, answers as lines, CSV or JSON
"""
