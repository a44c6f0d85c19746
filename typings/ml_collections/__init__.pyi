"""Types of the part of ml_collections that is used here.

The package's own annotations make every field of a `ConfigDict` a union of all types that a field
may have, so that no field can be used without a cast.
"""

from ml_collections import config_dict as config_dict
from ml_collections import config_flags as config_flags
from ml_collections.config_dict import ConfigDict as ConfigDict
from ml_collections.config_dict import FieldReference as FieldReference
