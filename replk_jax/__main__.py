"""python -m replk_jax <verb>"""

from replk_jax.cli import main
from replk_jax.command_line import clean_exit

if __name__ == "__main__":
    with clean_exit():
        main()
