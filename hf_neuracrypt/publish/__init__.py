"""What goes to the Hub, and what must not.

guard.py  checks every file before upload: allow-listed names, no keys, tokens, plain images or metadata
cards.py  dataset and model cards, from the templates in model_cards/
push.py   an encrypted dataset as one commit
"""
