"""Errors that a user can mend: each message names the value, the rule and the remedy.

`harmonize_tf.command.run` turns any of them into one line and exit status 2.
"""


class HarmonizeError(Exception):
    """Base of all errors raised for what a user gave us."""


class FlagError(HarmonizeError):
    """A command's flags are wrong, missing or contradict one another."""


class SceneError(HarmonizeError):
    """A scene, its files or its manifest cannot be used as what they are declared to be."""


class RecordError(HarmonizeError):
    """A record or a shard of records is damaged, or of another schema than was asked for."""


class DatasetError(HarmonizeError):
    """A set of records is missing, empty, or does not hold what the model needs."""


class ModelError(HarmonizeError):
    """A model, checkpoint or SavedModel is missing, unreadable, or made for other data."""


class ServerError(HarmonizeError):
    """A model server cannot be reached or refuses a request."""


class TransientError(HarmonizeError):
    """A service did not answer in time or had no quota left; the same request may succeed later."""


class PermanentError(HarmonizeError):
    """A service refuses a request for good; repeating it is of no use."""
