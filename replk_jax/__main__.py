"""python -m replk_jax <verb>"""

from replk_jax.cli import main
from replk_jax.command_line import quiet_end

if __name__ == "__main__":
    with quiet_end():
        main()
