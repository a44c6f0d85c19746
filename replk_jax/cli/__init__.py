"""The command line: python -m replk_jax VERB."""
