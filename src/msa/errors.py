"""Every exception this package raises on purpose; a bad argument is a plain ``ValueError`` or ``TypeError``."""


class MSAError(Exception):
    """Base of all errors a user can act on; its message says what was expected, what was found and what to do."""


class UnsupportedModelError(MSAError):
    """A checkpoint whose family or options this package does not implement (for example a sliding window)."""


class ModelNotFoundError(MSAError):
    """A model name, folder, hub id or file that cannot be found or fetched."""


class CheckpointError(MSAError):
    """A checkpoint or adapter whose files are missing, damaged or do not fit the model."""


class ContextLengthError(MSAError, ValueError):
    """A question that, with what stands before it and room for its answer, is longer than the model's context."""


class DocumentError(MSAError):
    """An input file or line that cannot be read as documents; names the file and line."""


class NotFiniteError(DocumentError):
    """Documents of which the model makes NaN or infinite latents; they are named. Beside such, none could be found."""


class TrainingDataError(MSAError):
    """Training files with broken lines, unknown ids or nothing to learn from; names each file and line."""


class TrainingError(MSAError):
    """A training run that cannot go on: a loss that is not finite, a checkpoint of another configuration."""


class BankError(MSAError):
    """Base of all errors about a memory folder."""


class BankNotFoundError(BankError):
    """A memory folder that does not exist, opened without ``create=True``."""


class NoDocumentsError(BankError):
    """A question to a memory without documents, or without any that has the metadata asked for; the filter is named."""


class BankFormatError(BankError):
    """A folder that is not a memory, or one of a format version this release does not know."""


class BankMismatchError(BankError):
    """A memory made by another model; both fingerprints are named."""


class BankFileError(BankError):
    """Base of the two below: a file of a memory is of no use now; what is in the other files stays readable."""


class BankCorruptError(BankFileError):
    """A memory file that is missing or whose checksum is wrong; the file is named."""


class BankUnreadableError(BankFileError):
    """A memory file that cannot be read at present, which says nothing of what is in it; the file is named."""


class BankFullError(BankError):
    """A change that would make a memory larger than it may be; nothing was changed."""


class MemoryBudgetError(MSAError):
    """Latents that do not fit where they are to be kept; what each place would need is named."""


class BankLockedError(BankError):
    """Another process is writing to this memory; its process id is named."""


class ParallelError(MSAError):
    """A rank of a sharded memory that ended, did not answer in time or was not started by ``torchrun``."""


class EvaluationError(MSAError):
    """An evaluation that cannot begin or go on: an empty set, a damaged results file, one of other settings."""


class JudgeError(EvaluationError):
    """A judge that could not be asked, or whose reply holds no score; never counted as a score of 0."""
