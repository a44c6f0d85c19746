"""python -m replk_jax <verb>"""

from replk_jax.cli import main

if __name__ == "__main__":
    main()
