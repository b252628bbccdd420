"""What goes to the Hub, and what must not.

guard.py   checks every file before upload: allow-listed names, no keys, tokens, plain images or metadata
traces.py  the forms in which a key may end up in other data
cards.py   dataset and model cards, from the templates in model_cards/
shards.py  a shard as Parquet, on its way
push.py    an encrypted dataset as one commit
"""
