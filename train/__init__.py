"""The training application, built on `replk_jax`."""
