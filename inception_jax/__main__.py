"""`python -m inception_jax` runs the command `inception-jax`."""

from inception_jax.commands import main

if __name__ == "__main__":
    main()
