"""What a run says when it cannot go on."""


class RunError(Exception):
    """A reason to stop that is the user's to mend; the message names the cause and the remedy."""
