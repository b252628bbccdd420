"""The cloud's side: fine-tuning a stock model on ciphertexts. Nothing here holds a key.

data.py      encrypted datasets as `Trainer` takes them
recipes.py   defaults of `scripts/train.py` by name; the aligned start
trainer.py   the `Trainer` that publishes with our card, through the guard
tasks.py     loss and figures of each kind of label
metrics.py   evaluation of a trained model
progress.py  what a run says of itself
tracking.py  what trackers are told of it
"""
