"""python -m replk_jax <verb>"""

from replk_jax.cli.clean_exit import clean_exit
from replk_jax.cli.main import main

if __name__ == "__main__":
    with clean_exit():
        main()
