"""What an error that nobody expected says of where it came from, for the log.

Owns nothing. Any thread.
"""


def told(error: BaseException) -> str:
    """Lines."""
    import traceback  # with all that reads source files, for what is not to happen

    return "".join(traceback.format_exception(error))
