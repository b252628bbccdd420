"""The secret key: 32 bytes that never leave their object, the file they are kept in, and all that is derived from them.

secret.py  `SecretKey`: its public id, its numbers, permutations and seals
file.py    the key file, plain or wrapped with a passphrase
"""

from hf_neuracrypt.keys.file import PLAIN_PREFIX, WRAPPED_PREFIX, read_passphrase
from hf_neuracrypt.keys.secret import SecretKey


__all__ = ["PLAIN_PREFIX", "WRAPPED_PREFIX", "SecretKey", "read_passphrase"]
