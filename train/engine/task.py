"""What a run is about: all that its loop, its step and its evaluation need not know."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint
from replk_jax.models.network import Network
from replk_jax.vision.preprocessing import Preprocessing
from train.data.splits import EvaluationSplit, TrainingSplit
from train.engine.evaluation import Measure
from train.engine.step import Objective


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network learns, from which examples, and what tells how good it is.

    Attributes:
      model: the network, in its training-time structure.
      image_size: height and width of the images that it is trained on.
      objective: what the steps make smaller.
      training: the examples of the steps.
      measure: what tells how good the network is.
      evaluation: the examples that it is told by.
      preprocessing: of the images that the network is for, which a checkpoint remembers.
      class_names: of what it tells apart, remembered as well; None where there are no classes.
    """

    model: Network
    image_size: tuple[int, int]
    objective: Objective
    training: TrainingSplit
    measure: Measure
    evaluation: EvaluationSplit
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None

    @property
    def description(self) -> dict[str, Any]:
        """Of the network, as a checkpoint has it."""
        return Checkpoint(self.model, {}, self.preprocessing, self.class_names).description()


# A configuration (see configs/common.py) -> the task of a run. In a run of several processes all
# call it at once; it raises RunError for an error that the user can fix.
MakeTask = Callable[[ConfigDict], Task]

# A configuration, a network from a file, how its images are prepared -> what tells how good it is,
# and the examples that it is told by. Called and failing as the other.
MakeEvaluation = Callable[[ConfigDict, Checkpoint, Preprocessing], tuple[Measure, EvaluationSplit]]
