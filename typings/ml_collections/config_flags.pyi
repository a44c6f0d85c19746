from absl import flags
from ml_collections.config_dict import ConfigDict

def DEFINE_config_file(
    name: str, default: str | None = None, help_string: str = ..., lock_config: bool = True
) -> flags.FlagHolder[ConfigDict]: ...
