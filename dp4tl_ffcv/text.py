"""Text from files, made safe to print."""


def printable(text: str) -> str:
    r"""Return `text` with escapes such as `\x1b` or `\n` for characters that are not printable.

    Names of files and classes may hold anything: a terminal would obey escape sequences, and a line
    break would end a line of a table. Characters of all scripts are kept. Escape where text is
    printed, not where it is stored.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
