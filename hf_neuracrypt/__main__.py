"""`python -m hf_neuracrypt` is `hf-neuracrypt`."""

from hf_neuracrypt.cli import main


if __name__ == "__main__":
    main()
