"""Text from files, made safe to print."""

_JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner, which Python calls not printable


def printable(text: str) -> str:
    r"""Return `text` with escapes such as `\x1b` or `\n` for characters that are not printable.

    Names of files and classes may hold anything: a terminal would obey escape sequences, and a line
    break would end a line of a table. Letters of all scripts are kept, with the joiners of Persian,
    Hindi and emoji. Characters that change the direction of the text are escaped. Escape where text
    is printed, not where it is stored.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in _JOINERS else each.encode("unicode_escape").decode()
        for each in text
    )
